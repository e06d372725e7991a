"""Files and folders that appear whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_free(target: Path) -> bool:
    """May something new be kept here? True where nothing is, or an empty folder."""
    return not target.exists() or (target.is_dir() and not any(target.iterdir()))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends and vanishes when it fails.

    `target` must be free; folders above it are made. Raises OSError where nothing can be written.
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
    """A file to write, which becomes `target` when the block ends and vanishes when it fails.

    Folders above it are made. Raises OSError where nothing can be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_for_good(target: Path, text: str) -> None:
    """Write a file, whole, and come back only when it would survive the machine's sudden end.

    Folders above it are made. Raises OSError where nothing can be written.
    """
    with whole_file(target) as path, path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename itself
    finally:
        os.close(handle)


def _beside(target: Path) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(8)}.partial"
