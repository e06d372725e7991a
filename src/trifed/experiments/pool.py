"""Runs jobs in processes, several at a time, and tells how far they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from trifed.common.errors import RunError
from trifed.config.run import make_config, read_toml
from trifed.experiments.compare_config import Job

POLL_SECONDS = 0.2
TAIL_BYTES = 4096
UNIMPORTANT = {"name", "controls", "trackers"}
"""Settings of a run that change none of the numbers that are compared."""

Listener = Callable[[dict[str, Any]], None]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[str]
    said: IO[str]
    began: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        """Give back what the ended process was connected to."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        self.said.close()


def carry_out(jobs: Sequence[Job], root: Path, parallel: int, listener: Listener, phase: str) -> None:
    """Run what is not finished, resume what was broken off, `parallel` processes at a time.

    Raises:
        RunError: a run failed, or stands in the folder with other settings. What the others did so far is kept.
    """
    for job in jobs:
        _check_same(job, root)
    waiting = [job for job in jobs if not is_finished(root / job.folder)]
    done = len(jobs) - len(waiting)
    listener({"event": "phase", "phase": phase, "done": done, "all": len(jobs)})
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                running.append(_start(waiting.pop(0), root, parallel))
            time.sleep(POLL_SECONDS)
            for item in [item for item in running if item.process.poll() is not None]:
                running.remove(item)
                _check_ended(item)
                done += 1
                seconds = time.monotonic() - item.began
                listener(
                    {"event": "job", "job": item.job, "done": done, "all": len(jobs), "seconds": seconds}
                    | {"mean": _mean(root / item.job.folder)}
                )
            listener({"event": "tick", "running": [(r.job, _round(root / r.job.folder)) for r in running]})
    finally:
        for item in running:
            item.process.kill()  # every whole round is kept, whenever a run is killed
        for item in running:
            item.process.wait()
            item.close()


def is_finished(folder: Path) -> bool:
    """Is there a result?"""
    return (folder / "summary.json").is_file()


def _check_same(job: Job, root: Path) -> None:
    path = root / job.folder / "config.toml"
    if not path.is_file():
        return
    there = make_config(read_toml(path), str(path)).model_dump(mode="json")
    wanted = job.config.model_dump(mode="json")
    for key in sorted(set(wanted) - UNIMPORTANT):
        if there.get(key) != wanted[key]:
            raise RunError(
                f"{path.parent}: stands there with another '{key}' ({there.get(key)!r} there, {wanted[key]!r} "
                f"now), so the two would not be compared under equal conditions; give the comparison another "
                f"name, or remove that folder"
            )


def _start(job: Job, root: Path, parallel: int) -> _Running:
    threads = max(1, (os.cpu_count() or 1) // parallel)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    said = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed when the process has ended
    process = subprocess.Popen(
        [sys.executable, "-m", "trifed.experiments.worker", str(root / job.folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=said,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
    )
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # it has ended already: its exit code and words say why
            process.stdin.write(json.dumps(job.config.model_dump(mode="json")) + "\n")
            process.stdin.flush()
    return _Running(job, process, said)


def _check_ended(item: _Running) -> None:
    item.said.seek(0)
    said = item.said.read().strip()
    item.close()
    if item.process.returncode:
        last = said.splitlines()[-1] if said else f"it ended with code {item.process.returncode}"
        message = said if item.process.returncode == 2 else last
        raise RunError(f"{item.job}: {message}\nThe finished runs are kept; the same command goes on from there")


def _mean(folder: Path) -> float | None:
    mean: float | None = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["accuracy"]["mean"]
    return mean


def _round(folder: Path) -> int:
    """The round that a run is in, from the end of its log."""
    path = folder / "events.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[1:-1]  # the first and the last may be half
    rounds = [json.loads(line).get("round", 0) for line in lines]
    return max(rounds, default=0)
