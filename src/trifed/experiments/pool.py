"""A pool of processes, one for each run of a comparison, that reports their progress.

Each process is this module itself: the run's folder is an argument, the configuration comes on stdin. When the
parent process ends, stdin is closed and the process ends too. A run's folder survives that at any moment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from trifed.common.errors import RunError, TrifedError
from trifed.common.stopping import MISTAKE
from trifed.common.text import printable
from trifed.config.run import make_config
from trifed.config.toml_files import read_toml
from trifed.experiments.compare_config import Job
from trifed.federation.events import Listener
from trifed.federation.run_folder import RunFolder

POLL_SECONDS = 0.2
TAIL_BYTES = 4096
ORPHANED = 3
IRRELEVANT = {"name", "controls", "trackers", "keep_checkpoints", "evaluate_every"}
"""Settings of a run that do not affect the compared numbers."""


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[str]
    output: IO[str]
    began: float = field(default_factory=time.monotonic)

    def close(self) -> None:
        """Wait for the process to end, and close its files."""
        self.process.wait()
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()
        self.output.close()


def run_jobs(jobs: Sequence[Job], root: Path, parallel: int, listener: Listener, phase: str) -> None:
    """Start or resume the unfinished jobs, `parallel` processes at a time.

    Raises:
        RunError: A run failed, or is in the folder with other settings. All whole rounds are kept.
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
                    | {"mean": RunFolder(root / item.job.folder).read_json("summary.json")["accuracy"]["mean"]}
                )
            listener({"event": "tick", "running": [(r.job, _round(root / r.job.folder)) for r in running]})
    finally:
        for item in running:
            item.process.kill()  # whole rounds are kept whenever a run is killed
        for item in running:
            item.close()


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def is_finished(folder: Path) -> bool:
    """Return True if the run in a folder has its result."""
    return (folder / "summary.json").is_file()


def _check_same(job: Job, root: Path) -> None:
    path, current = root / job.folder / "config.toml", job.config.model_dump(mode="json")
    existing = make_config(read_toml(path), str(path)).model_dump(mode="json") if path.is_file() else current
    for key in sorted(set(current) - IRRELEVANT):
        if existing.get(key) != current[key]:
            raise RunError(
                f"{path.parent}: this run has another '{key}' ({existing.get(key)!r} there, {current[key]!r} "
                f"now), so conditions would not be equal; give the comparison another name, or remove that folder"
            )


def _start(job: Job, root: Path, parallel: int) -> _Running:
    threads = {"OMP_NUM_THREADS": str(max(1, usable_cores() // parallel))}
    environment = {**threads, **os.environ, "TOKENIZERS_PARALLELISM": "false"}  # the user's own number holds
    output = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed when the process has ended
    process = subprocess.Popen(
        [sys.executable, "-m", "trifed.experiments.pool", str(root / job.folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=output,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, and it ends the others
    )
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # it has ended already: `_check_ended` reports the reason
            process.stdin.write(json.dumps(job.config.model_dump(mode="json")) + "\n")
            process.stdin.flush()
    return _Running(job, process, output)


def _check_ended(item: _Running) -> None:
    item.output.seek(0)
    output, code = item.output.read().strip(), item.process.returncode
    item.close()
    if code:
        last = output.splitlines()[-1] if output else f"it ended with code {code}"
        message = output if code == MISTAKE else last
        raise RunError(f"{item.job}: {message}\nThe finished runs are kept; the same command continues from there")


def _round(folder: Path) -> int:
    """Return the current round of a run, from the end of its log."""
    path = folder / "events.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[1:-1]  # the first and the last may be incomplete
    return max((json.loads(line).get("round", 0) for line in lines), default=0)


def main() -> None:
    """Start or continue the run of this process."""
    from trifed.experiments.runner import run_or_resume  # imported late: the parent process does not need it

    folder, config = Path(sys.argv[1]), make_config(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        run_or_resume(config, folder)
    except TrifedError as error:
        print(printable(str(error)), file=sys.stderr)
        sys.exit(MISTAKE)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
