"""The checkpoints of a run's last rounds, to which the run can go back, and of its best ones.

::

    RUN/
        checkpoint.safetensors              end of the last whole round
        checkpoints/round-NNNN.safetensors  end of that round; a hard link where it is the last one
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from trifed.common.errors import RunError
from trifed.common.files import flush

CHECKPOINT, KEPT = "checkpoint.safetensors", "checkpoints"
NO_LINKS = (errno.EPERM, errno.ENOTSUP)
"""Errors of file systems without hard links."""


def keep(run: Path, number: int, count: int, needed: Collection[int] = ()) -> None:
    """Keep the checkpoint of round `number`, which is the run's last one, and those of earlier rounds.

    Args:
        run: The run's folder.
        number: The last whole round.
        count: Number of last rounds whose checkpoints are kept, this one included.
        needed: Rounds whose checkpoints are kept as well.
    """
    for partial in run.glob(f".{CHECKPOINT}.*.partial"):  # of a killed process
        partial.unlink()
    for kept in kept_rounds(run):
        if not number - count < kept < number and (kept not in needed or kept >= number):
            _place(run, kept).unlink()
    if count > 1 or number in needed:
        _place(run, number).parent.mkdir(exist_ok=True)
        _link(run / CHECKPOINT, _place(run, number))


def kept_rounds(run: Path) -> list[int]:
    """Return the rounds whose checkpoints are kept, in order."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in (run / KEPT).glob("round-*.safetensors"))


def kept_checkpoint(run: Path, number: int) -> Path:
    """Return the file of a round's checkpoint, relative to the run's folder, whether it is kept or not."""
    return _place(run, number).relative_to(run)


def go_back(run: Path, number: int) -> None:
    """Make the checkpoint of round `number` the run's last one; the run is then not finished any more.

    Later checkpoints are removed. The event log is cut when the run continues.

    Raises:
        RunError: That round's checkpoint is not kept.
    """
    rounds = kept_rounds(run)
    if number not in rounds:
        known = ", ".join(map(str, rounds)) or "none"
        raise RunError(
            f"{run}: got from-round {number}, but the checkpoints that are kept are those of rounds {known}; "
            f"give one of them. The setting keep_checkpoints says how many are kept"
        )
    (run / "summary.json").unlink(missing_ok=True)
    again = run / f".{CHECKPOINT}.again.partial"
    again.unlink(missing_ok=True)
    _link(_place(run, number), again)
    again.replace(run / CHECKPOINT)
    again.unlink(missing_ok=True)  # a rename onto another link of the same file does nothing
    flush(run)
    for kept in rounds:
        if kept > number:
            _place(run, kept).unlink()


def forget(run: Path) -> None:
    """Remove all kept checkpoints but the run's last one: a client's data in them are to be deleted."""
    shutil.rmtree(run / KEPT, ignore_errors=True)


def _place(run: Path, number: int) -> Path:
    return run / KEPT / f"round-{number:04d}.safetensors"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)
