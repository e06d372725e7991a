"""Atomic files and folders: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


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
def whole_file(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to `target` at the end of the block, or deleted on an exception.

    Missing parent folders are created.

    Args:
        target: The file, which is replaced if it exists.
        durable: Return only when the file and its new name are on the disk, so that they survive a power failure.

    Raises:
        OSError: Nothing can be written, also where the writer was safetensors, which has an error of its own.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    try:
        with writing(target):
            yield partial
        if durable:
            flush(partial)
        partial.replace(target)
        if durable:
            flush(target.parent)  # the directory entry
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Raise the error of safetensors, if it cannot write inside the block, as an OSError about `target`."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(target)) from error


def flush(path: Path) -> None:
    """Write what the system still holds of a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(target: Path) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(8)}.partial"
