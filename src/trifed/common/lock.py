"""The lock of a run's folder: one process at a time writes to it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from trifed.common.errors import LockedError

LOCK = "lock"
"""File in the folder; while the folder is held, it names the holder's process and host."""
TRIES, PAUSE = 5, 0.02
"""Number of attempts to take a lock, and seconds between two: `is_held` may hold it for a moment meanwhile."""


def is_held(folder: Path) -> bool:
    """Return True if a process writes to a folder at this moment; nothing in the folder is changed."""
    try:
        # The file is there while the folder is held, or after its holder was killed.
        with (folder / LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock(file: TextIO) -> None:
    """Lock a file; raise BlockingIOError if another process keeps it locked."""
    for attempt in range(1, TRIES + 1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == TRIES:
                raise
            time.sleep(PAUSE)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder while this process writes to it; a missing folder is created.

    The system releases the lock when the process ends, however it ends. The file goes with the lock.

    Raises:
        LockedError: Another process holds the folder. Nothing in it was changed.
        OSError: The folder cannot be written.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as file:
        try:
            _lock(file)
            free = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError:
            free = False
        if not free:  # or the holder has just removed the file
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LockedError(
                f"{folder}: {holder} writes to this folder; wait until that process ends, or end it there with "
                f"`kill PID`, which loses nothing, and try again"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if new and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
