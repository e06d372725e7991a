"""Imports of large libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Switch the garbage collector off for a block that only imports.

    Imports make many objects and hardly any garbage, so this only saves time: about an eighth of the CPU time in
    which torch, transformers and PEFT are imported.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
