"""What the trackers' tests share: a run that may be written into, one that is broken off, its expected points."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trifed.config.run import make_config
from trifed.experiments.runner import run
from trifed.federation.run_folder import RunFolder
from trifed.reports.tracking.scalars import scalars

Values = dict[tuple[str, int], float]


@pytest.fixture
def finished_copy(finished: Callable[..., Any], tmp_path: Path) -> Path:
    """A finished run's folder with a baseline beside it."""
    source = finished("ce-lora", baselines=["local"]).path
    return Path(shutil.copytree(source, tmp_path / "runs" / "toy"))


@pytest.fixture
def break_off(toy_values: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """`break_off(folder, 3, trackers=[...])`: a run of three rounds that stops while round 3 is trained."""

    def stop(folder: Path, number: int, **changes: Any) -> Path:
        def listener(event: dict[str, Any]) -> None:
            if event["event"] == "trained" and event["round"] == number:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(make_config(toy_values(method="ce-lora", **changes)), folder, listener)
        return folder

    return stop


@pytest.fixture
def expected() -> Callable[[Path], Values]:
    """`expected(folder)`: all points of a run's log, (curve, round) → value."""

    def read(folder: Path) -> Values:
        return {
            (p.tag, p.step): p.value for batch in scalars(RunFolder.open(folder).whole_rounds()) for p in batch
        }

    return read
