"""The runs of a comparison without a process for each, whose start costs more than a small run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trifed.experiments import pool
from trifed.experiments.compare_config import Job
from trifed.experiments.runner import run_or_resume


class InThisProcess:
    """Stands for the process of a run: runs when polled a second time."""

    stdin, returncode = None, None

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self.polled = job, folder, 0

    def poll(self) -> int | None:
        self.polled += 1
        if self.polled == 2:
            run_or_resume(self.job.config, self.folder)
            self.returncode = 0
        return self.returncode

    def kill(self) -> None: ...

    def wait(self) -> None: ...


@contextmanager
def in_this_process() -> Iterator[None]:
    """A comparison does its runs one after the other, without processes."""

    def start(job: Job, root: Path, parallel: int) -> Any:
        return pool._Running(job, InThisProcess(job, root / job.folder), io.StringIO())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_start", start)
        patch.setattr(pool, "POLL_SECONDS", 0)
        yield
