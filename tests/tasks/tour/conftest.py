"""One way through the command line for every input of the tour: run, predict, evaluate, export, predict again."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tour_cases import Case

from test_cli_help import Said, call, tree

SMALL = (
    "--rounds", "1", "--rank", "2", "--learning-rate", "0.01", "--name", "seen", "--set", "baselines=[]",
    "--set", "controls=false", "--set", "training.device=cpu", "--set", "training.precision=fp32",
)  # fmt: skip
RUN = Path("runs/seen")

Row = dict[str, Any]


class Remarks(logging.Handler):
    """Collects what libraries log as a warning, which a user would read beside the result."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def remarks() -> Iterator[list[str]]:
    """Warnings that transformers, PEFT or others have logged since the test began."""
    handler, loggers = Remarks(), [logging.getLogger(name) for name in ("", "transformers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.texts
    for logger in loggers:
        logger.removeHandler(handler)


class RefusedError(Exception):
    """The case ends here, as it should."""


@dataclass
class Tour:
    """The way of one input through the commands; the current folder holds its files alone.

    Attributes:
        case: The input.
        give: Gives a command.
        remarks: What libraries have logged as warnings.
        ask: Further flags of `trifed predict`.
    """

    case: Case
    give: Callable[..., Said]
    remarks: list[str]
    ask: Sequence[str]

    def said(self, command: str, *args: object) -> str:
        """Return what a command prints; raise `RefusedError` if it refuses the input, as this case expects."""
        before = tree(Path())
        told = self.give(command, *args)
        assert "Traceback" not in told.out + told.err
        assert not self.remarks
        if command == self.case.refused:
            assert told.code == 2
            assert told.err.startswith("error: ") and told.err.count("error: ") == 1
            assert not [words for words in self.case.says if words not in told.err], told.err
            assert tree(Path()) == before
            raise RefusedError
        assert (told.code, told.err) == (0, "")
        return told.out

    def run(self, flags: Sequence[object]) -> None:
        case = self.case
        self.said("run", *flags, *SMALL, "--data", case.data, *case.flags)
        split = json.loads((RUN / "split.json").read_text())
        clients = split["clients"]
        assert tuple(client["name"] for client in clients) == case.clients
        assert not case.labels or tuple(split["label_names"]) == case.labels
        if case.kept is not None:
            assert sum(client[part] for client in clients for part in ("train", "valid", "test")) == case.kept

    def predicted(self, out: str, *model: object) -> list[Row]:
        """Predict the new rows into a file; without the refusal of another row it has all of them."""
        self.said("predict", *model, "--out", out, *self.ask)
        lines = Path(out).read_text(encoding="utf-8").splitlines()
        assert len(lines) == self.case.rows
        return [json.loads(line) for line in lines]

    def evaluated(self, measure: Sequence[str]) -> list[Row]:
        shown = self.said("evaluate", RUN, self.case.new, "--client", "all", "--format", "json", *measure)
        scores: list[Row] = json.loads(shown)["clients"]
        assert tuple(one["client"] for one in scores) == self.case.clients
        for one in scores:
            assert one["examples"] == self.case.rows
            assert 0 <= one["accuracy"] <= 1
            assert math.isfinite(one.get("loss", 0.0))
        return scores

    def take(
        self,
        flags: Sequence[object],
        result: Callable[[Row], None],
        score: Callable[[Row], None],
        measure: Sequence[str],
    ) -> None:
        client = self.case.clients[0]
        self.run(flags)
        rows = self.predicted("one.jsonl", RUN, self.case.new, "--client", client)
        for row in rows:
            result(row)
        for one in self.evaluated(measure):
            score(one)
        self.said("export", RUN, "--client", client, "--to", "export")
        again = self.predicted("again.jsonl", "export", self.case.new)
        for row, other in zip(rows, again, strict=True):
            near = {name: pytest.approx(row[name], abs=1e-4) for name in ("probability",) if name in row}
            assert other == {**row, **near}


@pytest.fixture
def tour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, remarks: list[str]
) -> Callable[..., None]:
    """`tour(case, flags, result, score)`: take one input through all commands, and check each of them.

    `flags`: those of the task and its model. `result` checks a predicted row, `score` the evaluation of a client.
    `ask` and `measure`: further flags of `trifed predict` and `trifed evaluate`.
    """
    monkeypatch.chdir(tmp_path)

    def take(
        case: Case,
        flags: Sequence[object],
        result: Callable[[Row], None],
        score: Callable[[Row], None],
        ask: Sequence[str] = (),
        measure: Sequence[str] = (),
    ) -> None:
        for name, content in case.files.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content)
        way = Tour(case, lambda *words: call(capsys, monkeypatch, *words), remarks, ask)
        if case.refused:
            with pytest.raises(RefusedError):
                way.take(flags, result, score, measure)
        else:
            way.take(flags, result, score, measure)

    return take
