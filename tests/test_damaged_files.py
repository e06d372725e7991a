"""Every field of every kept file, removed or of another type: a command ends with one message, or succeeds."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from trifed.cli.app import main

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # PEFT's, of odd settings

VALUES: list[Any] = [None, "x\x1b[2J", -1, 1e308, 10**30, [], {}, [[[]]], {"a": 1}, True]
"""What is written in a field's place; another type, or a number beyond sense."""
CONTENTS = {
    "empty": b"", "not UTF-8": b"\xff\xfe{", "deep": b"[" * 100_000, "a number": b"3", "null": b"null",
    "a list": b"[]", "an object": b"{}", "half": b'{"a": ', "huge number": b"9" * 5000,
}  # fmt: skip


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all fields; of a list, the first item stands for all."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from fields(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with one field replaced, or removed if `new` is Ellipsis."""
    copy = json.loads(json.dumps(value))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    if new is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return copy


def mutations(value: Any) -> Iterator[Any]:
    """For each field: removed, and in turn some of `VALUES`, so that every value meets many fields."""
    for number, path in enumerate(fields(value)):
        yield changed(value, path, ...)
        for offset in (0, 3, 7):
            yield changed(value, path, VALUES[(number + offset) % len(VALUES)])


@pytest.fixture
def ends_well(monkeypatch, capsys) -> Callable[..., int]:
    """Run a command in this process; every exception but SystemExit with 0 or 2 fails the test."""

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["trifed", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
            sys.exit(0)
        told = capsys.readouterr()
        code = ended.value.code or 0
        assert code in (0, 2), told.err
        errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code == 2), told.err
        assert "Traceback" not in told.err and "\x1b" not in told.out + told.err
        return int(code)

    return call


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A finished run that the test may change."""
    return Path(shutil.copytree(finished("local").path, tmp_path / "run"))


def try_all(file: Path, commands: Callable[[], Iterator[int]], most: int = 10_000) -> int:
    """Put every mutation of a file in its place, call commands, put the file back; return the refused ones."""
    whole = file.read_bytes()
    if file.suffix == ".toml":
        contents = [tomli_w.dumps(v).encode() for v in _toml_mutations(tomllib.loads(whole.decode()))]
    elif file.suffix == ".jsonl":
        lines = whole.splitlines()
        picked = {json.loads(line)["event"]: number for number, line in enumerate(lines)}
        contents = [
            b"\n".join([*lines[:n], json.dumps(new).encode(), *lines[n + 1 :], b""])
            for n in picked.values()
            for new in mutations(json.loads(lines[n]))
        ]
    else:
        contents = [json.dumps(new).encode() for new in mutations(json.loads(whole))]
    step = max(1, len(contents) // most)
    refused = 0
    for content in [*CONTENTS.values(), *contents[::step]]:
        file.write_bytes(content)
        refused += sum(code == 2 for code in commands())
    file.write_bytes(whole)
    return refused


def _toml_mutations(value: Any) -> Iterator[Any]:
    for path in fields(value):
        yield changed(value, path, ...)
        for new in ("x", -1, 1e308, [], {}, True):
            yield changed(value, path, new)


def test_classifier_and_adapter(copied, ends_well, tmp_path):
    client = copied / "clients" / "amber"
    alone = Path(shutil.copytree(client, tmp_path / "alone"))

    def commands() -> Iterator[int]:
        yield ends_well("predict", alone, "--text", "invoice", "--format", "csv")

    assert try_all(alone / "classifier.json", commands) > 20
    assert try_all(alone / "adapter_config.json", commands) > 15


def test_an_exports_columns(copied, ends_well, tmp_path):
    assert ends_well("export", copied, "--client", "amber", "--to", tmp_path / "out") == 0

    def commands():
        yield ends_well("predict", tmp_path / "out", "--text", "invoice")

    assert try_all(tmp_path / "out" / "classifier.json", commands) > 20


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}"])
def test_a_head(copied, ends_well, content, toy_table):
    (copied / "clients" / "amber" / "head.safetensors").write_bytes(content)
    assert ends_well("predict", copied, "--client", "amber", "--text", "invoice") == 2
    assert ends_well("evaluate", copied, toy_table, "--client", "amber") == 2
    assert ends_well("export", copied, "--client", "amber", "--to", copied / "out") == 2


def test_a_head_without_its_tensors(copied, ends_well):
    from safetensors.torch import save_file

    save_file({}, copied / "clients" / "amber" / "head.safetensors")
    assert ends_well("predict", copied, "--client", "amber", "--text", "invoice") == 2


@pytest.mark.parametrize("name", ["summary.json", "split.json", "environment.json", "config.toml", "events.jsonl"])
def test_a_runs_files(copied, ends_well, name):
    def commands() -> Iterator[int]:
        yield ends_well("report", copied, "--format", "md")
        if name == "events.jsonl":
            yield ends_well("watch", copied, "--no-wait")
        if name in ("summary.json", "environment.json"):
            yield ends_well("export", copied, "--client", "nobody")

    assert try_all(copied / name, commands, most=40) > 0


@pytest.mark.parametrize("name", ["summary.json", "environment.json"])
def test_a_card_needs_the_runs_files(copied, ends_well, name, tmp_path):
    def commands() -> Iterator[int]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        yield ends_well("export", copied, "--client", "amber", "--to", tmp_path / "out")

    assert try_all(copied / name, commands, most=20) > 0


@pytest.mark.parametrize("name", ["summary.json", "config.toml", "split.json"])
@pytest.mark.draws
def test_a_run_is_resumed(copied, ends_well, name):
    def commands() -> Iterator[int]:
        yield ends_well("run", "--resume", copied)

    assert try_all(copied / name, commands, most=8) > 0


KEPT = Path(__file__).parent / "fixtures" / "kept_runs" / "0.1.0"


@pytest.mark.parametrize(("folder", "file"), [("rivals", "comparison.json"), ("finished/audit", "audit.json")])
def test_a_comparison_and_an_audit(ends_well, tmp_path, folder, file):
    copy = Path(shutil.copytree(KEPT / "runs" / folder, tmp_path / "copy"))

    def commands() -> Iterator[int]:
        yield ends_well("report", copy, "--format", "md")

    assert try_all(copy / file, commands, most=30) > 0


@pytest.mark.parametrize("file", ["federation.json", "events.jsonl", "config.toml", "summary.json"])
def test_the_status_of_a_run_between_sites(ends_well, tmp_path, file):
    copy = Path(shutil.copytree(KEPT / "sites-finished" / "server", tmp_path / "copy"))

    def commands() -> Iterator[int]:
        yield ends_well("flower", "status", copy)

    try_all(copy / file, commands, most=60)
