"""Can one hostile message stop a run between sites, or change what the others get?

    python benchmarks/security/messages.py [--fuzz 20000] [--seed 0] [--out messages.json]

Messages: three sites run in this process, and their replies are recorded. The same run is then replayed once for
each hostile message of one site. That site alone has to be left out each time with a code, and the server's state
has to be bit for bit that of the run in which the site sent no such message. Requests: a site gets hostile ones
between rounds 1 and 2; it has to refuse each, and its upload has to be the recorded one.

Fuzz: random mutations of valid messages through every decoder and through both paths of a request to a site (the
socket's and Flower's). Counted are exceptions that are none of the project's, the longest CPU time of one input,
and the growth of the process's memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from fuzz import fuzz
from hostile import ODD, Json, hostile_facts, hostile_payloads, hostile_summaries
from replay import SITES, Key, Simulated, configured, key_of, play, record, site
from safetensors.numpy import load

from trifed.deployment.protocol import REASONS, Reply, Request
from trifed.federation.preparation import _processor

HERE = Path(__file__).parent
NO_REALS = [
    value for value in ODD if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e18
]
"""Odd values that are no number, or none of a sane size; NaN is a number where a client withholds one."""


# -- hostile messages


def without(name: str) -> Callable[[Reply], Reply]:
    return lambda reply: replace(reply, parts={n: p for n, p in reply.parts.items() if n != name})


def failed(reply: Reply) -> Reply:
    return Reply(error="other")


def with_payloads(part: str, *makers: Callable[[bytes], Any]) -> Callable[[Reply], list[tuple[str, Reply]]]:
    return lambda reply: [
        (name, replace(reply, parts={**reply.parts, part: payload}))
        for make in makers
        for name, payload in make(reply.parts[part])
    ]


def with_facts(keys: list[str], odd: list[Any], optional: str = "") -> Callable[[Reply], list[tuple[str, Reply]]]:
    return lambda reply: [
        (name, replace(reply, facts=facts))
        for name, facts in hostile_facts(dict(reply.facts), keys, odd)
        if optional in ("", *facts)
    ]


LONG = [value for value in ODD if not isinstance(value, str) or len(value) > 200]
KINDS: dict[str, tuple[str, tuple[str, int], Callable[[Reply], Reply], list[Any]]] = {
    "upload, few bits": ("own-prior", ("train", 1), without("upload"), [
        with_payloads("upload", hostile_payloads),
    ]),
    "upload, float32": ("fedavg-lora", ("train", 1), without("upload"), [
        with_payloads("upload", hostile_payloads), with_facts(["loss", "seconds"], NO_REALS),
        with_facts(["steps"], ODD),
    ]),
    "summary": ("own-prior", ("open", 0), without("summary"), [
        with_payloads("summary", hostile_payloads, hostile_summaries),
    ]),
    "gradient": ("fed-sb", ("gradient", 0), without("gradient"), [with_payloads("gradient", hostile_payloads)]),
    "opening facts": ("own-prior", ("open", 0), failed, [
        with_facts(["examples", "layers", "layout", "lora_bytes"], ODD), with_facts(["data"], LONG),
    ]),
    "final scores": ("own-prior", ("finish", 3), failed, [
        with_facts([f"{split}_{name}" for split in ("valid", "test") for name in ("loss", "accuracy")], NO_REALS,
                   "test_accuracy"),
        with_facts(["valid_examples", "test_examples"], ODD),
        with_facts(["test_accuracy"], [-1, 1.5, 2**31], "test_accuracy"),
    ]),
}  # fmt: skip
"""By kind: the method, kind and round of the reply, the reply without the message, and what makes hostile ones."""


def check_messages(kind: str, folder: Path) -> Json:
    """Replay the run with each hostile message of a kind."""
    method, where, spoil, makers = KINDS[kind]
    config = configured(method)
    replies, _, expected = record(config, folder, where, spoil)
    honest = next(reply for key, reply in replies.items() if key[:3] == (*where, 0))
    codes, wrong, number = Counter[str](), [], 0
    for name, hostile in [pair for make in makers for pair in make(honest)]:

        def answer(node: int, request: Request, hostile: Reply = hostile) -> Reply:
            key = key_of(node, request)
            return hostile if node == 0 and key[:2] == where else replies.get(key, Reply(error="other"))

        number += 1
        left_out, state = play(config, answer)
        alone = [(e["client"], e["code"] in REASONS) for e in left_out] == [(SITES[0], True)]
        codes.update(e["code"] for e in left_out)
        if not alone or state != expected:
            wrong.append(name)
    return {"hostile": number, "rejected_alone_same_state": number - len(wrong), "codes": codes, "wrong": wrong}


SIMULATED = {
    "upload, few bits": "train", "upload, float32": "train", "summary": "summary", "gradient": "gradient",
}  # fmt: skip
"""Kinds of messages of the simulator, with the exchange that they belong to."""


def check_simulated(kind: str, folder: Path) -> Json:
    """Replay a simulated run with each hostile message of a kind; facts beside it do not leave the process."""
    method, _, _, makers = KINDS[kind]
    where = (SIMULATED[kind], int(SIMULATED[kind] == "train"), 0, 0)
    run = Simulated(method, folder)
    run.play(where)
    honest = next(reply for key, (reply, _) in run.messages.items() if key[:4] == where)
    part, payload = SIMULATED[kind], honest
    if where[0] == "train":
        part, payload = "upload", honest.upload
    hostile = [
        (name, reply.parts[part])
        for make in makers
        for name, reply in make(Reply(dict.fromkeys(("loss", "seconds", "steps"), 0), {part: payload}))
        if reply.parts[part] != payload
    ]
    _, expected = run.play(where, b"")
    wrong, codes = [], Counter[str]()
    for name, message in hostile:
        left_out, state = run.play(where, message)
        codes.update(e["code"] for e in left_out)
        alone = [(e["client"], e["code"] in REASONS) for e in left_out] == [(SITES[0], True)]
        if not alone or state != expected:
            wrong.append(name)
    return {"hostile": len(hostile), "rejected_alone_same_state": len(hostile) - len(wrong), "codes": codes,
            "wrong": wrong}  # fmt: skip


# -- hostile requests to a site


def hostile_requests(requests: Mapping[Key, Request]) -> list[tuple[str, Request]]:
    """Return requests that a site must refuse between rounds 1 and 2."""
    hello, opening, train, finish = (requests[key] for key in (
        ("hello", 0, 0, 0), ("open", 0, 0, 1), ("train", 2, 0, 0), ("finish", 3, 0, 0)))  # fmt: skip
    found = [
        (f"kind {kind[:9]!r}", replace(train, kind=kind))
        for kind in ("", "dance", "x" * 10**6, "gradient", "frames")
    ]
    names = [value for value in ODD if value != "3"]
    for request, keys in (
        (hello, ["config", "method_code"]), (opening, ["place"]), (train, ["round", "counts", "asked", "data"]),
        (finish, ["round", "counts"]),
    ):  # fmt: skip
        for name, facts in [
            *hostile_facts(dict(request.facts), keys, ODD),
            *hostile_facts(dict(request.facts), ["run"], names),
        ]:
            found.append((f"{request.kind}: {name}", replace(request, facts=facts)))
    for name, payload in hostile_payloads(train.parts["download"]):
        found.append((f"download: {name}", replace(train, parts={"download": payload})))
    return found


def check_requests(folder: Path) -> Json:
    """Send hostile requests to a site after round 1, then the valid one."""
    replies, requests, _ = record(configured("own-prior"), folder / "real", ("", 0), failed)
    process = site(folder / "asked", 0)
    for key in (("hello", 0, 0, 0), ("open", 0, 0, 1), ("train", 1, 0, 0)):
        process.answer(requests[key])
    codes, wrong = Counter[str](), []
    hostile = hostile_requests(requests)
    for name, request in hostile:
        reply = process.answer(request)
        codes[reply.error or ("lost" if reply.lost else "answered")] += 1
        if reply.parts or not (reply.error or reply.lost):
            wrong.append(name)
    key = ("train", 2, 0, 0)
    uploads = [load(reply.parts["upload"]) for reply in (process.answer(requests[key]), replies[key])]
    same = all(np.array_equal(uploads[0][name], uploads[1][name]) for name in uploads[1])
    return {
        "hostile": len(hostile),
        "refused": len(hostile) - len(wrong),
        "same_upload": same,
        "codes": codes,
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=20_000, help="mutated messages in all; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS], help="kinds of hostile messages")
    parser.add_argument("--out", type=Path, default=HERE / "messages.json")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    result: Json = {
        "versions": {name: version(name) for name in ("trifed", "flwr", "torch", "numpy", "safetensors")},
        "python": platform.python_version(), "machine": platform.machine(), "processor": _processor(),
        "cpus": os.cpu_count(),
        "seed": options.seed, "messages": {}, "simulated": {}, "requests": {}, "fuzz": {},
    }  # fmt: skip
    # One name for all runs and one mark for all data, so that recorded replies fit the runs that replay them.
    with tempfile.TemporaryDirectory() as folder, patch("secrets.token_hex", lambda n: "0" * 2 * n):
        for kind in options.kinds:
            result["messages"][kind] = check_messages(kind, Path(folder) / kind)
            print(kind, result["messages"][kind], flush=True)
            if kind in SIMULATED:
                result["simulated"][kind] = check_simulated(kind, Path(folder) / f"simulated {kind}")
                print(kind, "simulated", result["simulated"][kind], flush=True)
        result["requests"] = check_requests(Path(folder) / "requests")
        print("requests", result["requests"], flush=True)
        if options.fuzz:
            result["fuzz"] = fuzz(Path(folder) / "fuzz", options.fuzz, options.seed)
            print("fuzz", result["fuzz"], flush=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
