"""The errors of trifed, as one tree.

::

    TrifedError                 an error that the user can correct; the command line prints it, exit code 2
    ├── ConfigError             one or several mistakes in a configuration, all reported at once
    ├── DataError               a file, a column, a label or a split that cannot be used
    ├── ModelError              a base model or its target modules that cannot be used
    ├── AdapterError            an adapter folder or adapter configuration that cannot be used
    ├── RunError                a run folder that exists, is missing, or does not fit
    │   ├── LockedError         a run folder that another process writes to
    │   ├── GuardError          an upload or a summary that would reveal single examples
    │   └── BudgetError         a release that would exceed a privacy budget
    ├── SimilarityError         arrays that no similarity can be computed from (in trifed.similarity)
    └── MessageError            an upload or a download that must not be accepted

Every message says where the mistake is, what was found, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from safetensors import SafetensorError


class TrifedError(Exception):
    """Base class of all errors that the user can correct."""


class ConfigError(TrifedError):
    """All mistakes in one configuration.

    `problems` holds one message for each, which starts with the dotted name of the setting.
    """

    def __init__(self, problems: Sequence[str], source: str = "configuration") -> None:
        self.problems = list(problems)
        self.source = source
        mistakes = "1 mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        super().__init__("\n".join([f"{source}: {mistakes}", *(f"  - {problem}" for problem in self.problems)]))


class DataError(TrifedError):
    """Training data that cannot be used."""


class ModelError(TrifedError):
    """A base model that cannot be used."""


class AdapterError(TrifedError):
    """An adapter folder, or an adapter configuration, that cannot be used."""


class RunError(TrifedError):
    """A run folder that cannot be used."""


class LockedError(RunError):
    """A run folder that another process writes to."""


class GuardError(RunError):
    """An upload or a summary that would reveal single examples."""


class BudgetError(RunError):
    """A release that would exceed a privacy budget."""


class MessageError(TrifedError):
    """A message between client and server that must not be accepted."""


def one_line(text: object, most: int = 500) -> str:
    """Return a text that came from outside as one line for a log: printable, at most `most` characters."""
    shown = str(text)[: most + 1]
    shown = "".join(character if character.isprintable() else " " for character in shown)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


DAMAGE: tuple[type[Exception], ...] = (
    ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, SafetensorError, TypeError,
    ValueError, re.error,
)  # fmt: skip
"""Errors of code that reads a file of another content than it expects."""


@contextmanager
def damage_in(
    path: object, way_out: str, kind: type[TrifedError] = RunError, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Report what cannot be read or used inside the block as damage of a file or a folder.

    Args:
        path: The file or the folder.
        way_out: What the user can do.
        kind: Kind of the error that is raised.
        also: Errors that count as damage, in addition to `DAMAGE`.

    Raises:
        TrifedError: Of the given kind.
    """
    try:
        yield
    except (*DAMAGE, *also) as error:
        reason = " ".join(str(error).split())[:200]
        raise kind(f"{path}: damaged or not complete ({type(error).__name__}: {reason}); {way_out}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` with the known name that is nearest to `name`, or an empty text."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
