"""What does a server learn that asks a site for more than a run needs?

    python benchmarks/security/curious.py [--out curious.json]

A site with its own process, as Flower's ClientApp reaches it, and a server that follows a script: requests before
a run begins, settings that name other columns, labels, files, models and methods, exact gradients, rounds out of
order, a second run. For each reply the site's record (`releases.jsonl`) must have a line that says the same:
facts, names and bytes of messages, code. A reply without a line may hold a code alone. No reply may hold a text of
the site's data, a column's name, or a path. Writes curious.json beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import platform
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from replay import ROWS, configured

from trifed.deployment.greeting import greeting
from trifed.deployment.protocol import Fact, Reply, Request
from trifed.deployment.release_log import NOT_SHOWN, Release, read_releases
from trifed.deployment.worker import ask_worker

HERE = Path(__file__).parent
DIAGNOSES = ("asthma", "migraine", "gastritis", "anaemia", "sciatica", "psoriasis", "glaucoma", "bronchitis")
NAMES = ("Ingeborg", "Thaddeus", "Wilhelmina", "Bartholomew", "Clementine", "Ferdinand", "Philippa", "Rosalind")
LABELS = sorted({row["label"] for row in ROWS})


def write_site(folder: Path) -> Path:
    """Write a site with a table of four columns, of which runs may read the first two; return its settings."""
    draw = random.Random(0)
    with (folder / "patients-2026.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "diagnosis", "full_name"])
        for row in ROWS[:80]:
            table.writerow([row["text"], row["label"], draw.choice(DIAGNOSES), draw.choice(NAMES)])
    settings = folder / "node.toml"
    settings.write_text(
        f'name = "clinic"\nfolder = "{folder / "kept"}"\nidle_seconds = 60\ncolumns = ["text", "label"]\n'
        f'labels = {json.dumps(LABELS)}\n[data]\nsource = "{folder / "patients-2026.csv"}"\n',
        encoding="utf-8",
    )
    return settings


def hello(changes: dict[str, Any], run: str = "curious-1") -> Request:
    """Return a greeting with changed settings; a dictionary changes single settings of a table."""
    found = greeting(run, configured("own-prior"))
    values = json.loads(str(found.facts["config"]))
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return replace(found, facts={**found.facts, "config": json.dumps(values)})


def script(folder: Path, replies: list[Reply]) -> Iterator[tuple[str, Request]]:
    """Yield the requests, with what each of them is after; `replies` has the replies so far."""

    def ask(kind: str, run: str = "curious-1", **facts: Fact) -> Request:
        return Request(kind, {"run": run, "place": 0, **facts})

    turn: dict[str, Fact] = {"round": 1, "counts": 0, "asked": 3, "data": ""}
    for kind in ("gradient", "open", "frames", "train", "finish", "summary", "predict", "data"):
        yield f"{kind} before any greeting", ask(kind, **turn)
    for run in ("../../etc", "/root", "kept", "a" * 200):
        yield f"a run named {run[:9]!r}", ask("open", run)
    settings: dict[str, dict[str, Any]] = {
        "diagnoses as labels": {"data": {"label": "diagnosis", "labels": ["x"]}},
        "names as labels": {"data": {"label": "full_name", "labels": ["x"]}},
        "names as texts": {"data": {"text": "full_name"}},
        "a column that is not there": {"data": {"text": "address"}},
        "another file": {"data": {"source": "/etc/passwd"}},
        "another reader": {"data": {"reader": "json"}},
        "other labels": {"data": {"labels": ["x", "y"]}},
        "a folder of the system as model": {"model": {"name": "/etc"}},
        "the site's folder as model": {"model": {"name": str(folder)}},
        "a model that is not there": {"model": {"name": "/no/such/model"}},
        "texts as prompts": {"task": "causal-lm", "method": "fedavg-lora"},
        "an exact gradient": {"method": "fed-sb"},
        "the whole model": {"method": "fedavg-full"},
        "a method of the server's own": {"method": "my-method"},
        "guards off": {"privacy": {"few_tokens": "allow"}},
        "a client of one example": {"data": {"test": 0.99}},
        "no table": {"data": 3},
        "deep settings": {"data": {"labels": [[[["x"]]]]}},
    }
    for number, (name, changes) in enumerate(settings.items(), 2):
        yield name, hello({}, f"curious-{number}") if changes is None else hello(changes, f"curious-{number}")
        yield f"{name}: open", ask("open", f"curious-{number}", start=1)
        yield f"{name}: gradient", ask("gradient", f"curious-{number}")
    yield "the greeting of the run", hello({})
    yield "its method's gradient", ask("gradient")
    yield "a round before the opening", ask("train", **turn)
    yield "the opening", ask("open", start=1)
    mark = str(replies[-1].facts.get("data", ""))
    turn["data"] = mark
    yield "other columns after the opening", hello({"data": {"label": "diagnosis"}})
    yield "a gradient after the opening", ask("gradient")
    yield "shared projections", ask("frames", layout="[]")
    yield "round 2 before round 1", ask("train", **{**turn, "round": 2})
    yield "a round beyond the last", ask("train", **{**turn, "round": 99})
    yield "a round of one client", ask("train", **{**turn, "asked": 1})
    yield "other data", ask("train", **{**turn, "data": "0" * 64})
    yield "round 1", ask("train", **turn)
    yield "round 1 again", ask("train", **turn)
    yield "a gradient after round 1", ask("gradient")
    yield "the opening again", ask("open", start=1)
    yield "round 2", ask("train", **{**turn, "round": 2, "counts": 1})
    yield "the end, with scores", ask("finish", round=3, counts=2)
    yield "round 2 after the end", ask("train", **{**turn, "round": 2, "counts": 1})
    yield "a second run on the same data", hello({"seed": 1}, "curious-99")
    yield "its opening", ask("open", "curious-99", start=1)
    yield "its opening as another client", Request("open", {"run": "curious-99", "place": 7})
    for label in LABELS[:3]:
        yield (
            "whether the site has one label",
            hello({"data": {"labels": [label]}}, f"curious-{label}".replace("_", "-")),
        )


def said(reply: Reply) -> dict[str, Any]:
    """Return what a reply says, in the form of the record."""
    facts = {n: f"{len(str(v))} characters" if n in NOT_SHOWN else v for n, v in reply.facts.items()}
    facts = {n: "none" if isinstance(v, float) and not math.isfinite(v) else v for n, v in facts.items()}
    return {"facts": facts, "parts": {n: len(p) for n, p in reply.parts.items()}, "error": reply.error}


def recorded(release: Release) -> dict[str, Any]:
    values = asdict(release)
    parts = {name: part["bytes"] for name, part in values["parts"].items()}
    return {"facts": values["facts"], "parts": parts, "error": values["error"]}


def secrets(folder: Path) -> set[str]:
    """Return texts that may not be in a reply: every word of eight letters in the data, cells, columns, paths."""
    with (folder / "patients-2026.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    cells = {cell for row in rows for cell in row}
    words = {word for cell in cells for word in cell.split() if len(word) >= 8 and word.isalpha()}
    return ({*cells, *words, *DIAGNOSES, *NAMES, "patients", str(folder)} | {"diagnosis", "full_name"}) - {
        *LABELS, "text", "label",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "curious.json")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    asked: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        settings, replies = write_site(folder), [Reply()]
        words, seen = secrets(folder), 0
        for name, request in script(folder, replies):
            reply = ask_worker(settings, request)
            replies.append(reply)
            lines = read_releases(folder / "kept")
            new, seen = lines[seen:], len(lines)
            whole = (
                json.dumps(dict(reply.facts)).encode() + b"".join(reply.parts.values()) + str(reply.error).encode()
            )
            asked.append({
                "after": name, "kind": request.kind, "code": reply.error or ("lost" if reply.lost else "answered"),
                "bytes": {part: len(payload) for part, payload in reply.parts.items()},
                "facts": sorted(reply.facts), "in_record": [recorded(line) for line in new] == [said(reply)],
                "nothing_but_a_code": not (reply.parts or reply.facts),
                "secrets": sorted(word for word in words if word.encode() in whole),
            })  # fmt: skip
            print(f"{len(asked)} {name}: {asked[-1]['code']} {asked[-1]['bytes']}", flush=True)
        os.system(f"pkill -f {settings}")
    result = {
        "requests": len(asked),
        "codes": Counter(one["code"] for one in asked),
        "messages_sent": Counter(part for one in asked for part in one["bytes"]),
        "not_in_record": [one["after"] for one in asked if not (one["in_record"] or one["nothing_but_a_code"])],
        "with_secrets": [one["after"] for one in asked if one["secrets"]],
        "session": asked,
        "versions": {name: version(name) for name in ("trifed", "flwr", "torch")},
        "python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count(),
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in list(result)[:5]}, indent=1))


if __name__ == "__main__":
    main()
