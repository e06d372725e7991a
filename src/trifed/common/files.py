"""Atomic files and folders: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_free(target: Path) -> bool:
    """Return whether something can be created here: nothing exists, or an empty folder."""
    return not target.exists() or (target.is_dir() and not any(target.iterdir()))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `target` at the end of the block, or deleted on an exception.

    `target` must be free; missing parent folders are created. Raises OSError if nothing can be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            target.rmdir()  # empty; a rename onto a folder fails on some systems
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to `target` at the end of the block, or deleted on an exception.

    Missing parent folders are created. Raises OSError if nothing can be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_for_good(target: Path, text: str) -> None:
    """Write a file atomically, and return when it is on the disk, so that it survives a power failure.

    Missing parent folders are created. Raises OSError if nothing can be written.
    """
    with whole_file(target) as path, path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the directory entry
    finally:
        os.close(handle)


def _beside(target: Path) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(8)}.partial"
