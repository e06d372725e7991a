"""`trifed doctor`: whether a machine, a run's file or a folder is fit to be used. Nothing is changed on the disk.

::

    machine    versions, extras, devices, memory, disks
    runs       a run's TOML file, and runs/NAME
    sites      a server's and a site's folder between sites

Each of them yields `Check`s. `attempt` calls a function of the product and reports its own error; `judge` reports
the rows of a table whose condition holds.
"""

from __future__ import annotations

import fcntl
import json
import shlex
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from safetensors import SafetensorError, safe_open

from trifed.common.errors import ConfigError, RunError, TrifedError, nearest
from trifed.reports.format import listing, plural

State = Literal["ok", "warning", "problem", "skipped"]
Value = TypeVar("Value")
Fault = tuple[Any, State, str, str]
"""A condition, and what is reported if it holds: the state, what was found, how to mend it."""
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError)
"""Errors that a reader of damaged files raises, besides the product's own."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked.
        state: "ok", "warning", "problem", or "skipped" for a check that was not possible or not needed.
        found: What was found.
        mend: How to mend it; empty if there is nothing to do.
    """

    name: str
    state: State
    found: str
    mend: str = ""


def attempt(
    name: str, action: Callable[[], Value], good: str, mend: str, state: State = "problem"
) -> Generator[Check, None, Value | None]:
    """Yield the result of an action, and return its value; None after an error.

    Args:
        name: What is checked.
        action: A function that raises an error if something is wrong.
        good: Sentence about the value, as for `str.format`; nothing is yielded if it is empty.
        mend: How to mend what an error says.
        state: State of an error.
    """
    try:
        value = action()
    except (TrifedError, *DAMAGE) as error:
        known = isinstance(error, TrifedError | OSError)
        text = str(error) if known else f"Damaged ({type(error).__name__}: {error})."
        mistakes = error.problems if isinstance(error, ConfigError) else [text]
        yield from (Check(name, state, mistake, mend) for mistake in mistakes)
        return None
    if good:
        yield Check(name, "ok", good.format(value))
    return value


def judge(name: str, good: str, *faults: Fault) -> Iterator[Check]:
    """Yield the faults whose condition holds, or the sentence `good` if there is none."""
    found = [Check(name, state, text, mend) for condition, state, text, mend in faults if condition]
    yield from found or [Check(name, "ok", good)]


def under(name: str, checks: Iterable[Check]) -> Iterator[Check]:
    """Yield the checks of a folder inside a checked one, with its name before each."""
    return (replace(check, name=f"{name}: {check.name}") for check in checks)


def broken(paths: Sequence[Path]) -> list[str]:
    """Return a text for each JSON file and safetensors file that cannot be read. No tensor is loaded."""
    found = []
    for path in paths:
        try:
            json.loads(path.read_bytes()) if path.suffix == ".json" else safe_open(path, "np")
        except DAMAGE as error:
            found.append(f"{path}: {error}")
    return found


def check_files(folder: Path, mend: str) -> Generator[Check, None, bool]:
    """Check all JSON and safetensors files below a folder; return whether each can be read."""
    paths = [path for path in sorted(folder.rglob("*")) if "/." not in f"/{path.relative_to(folder)}"]
    wrong = broken(files := [path for path in paths if path.suffix in (".json", ".safetensors")])
    yield from judge(
        "files",
        f"{len(files)} JSON and safetensors files can be read.",
        (wrong, "problem", f"{listing(wrong)}.", mend),
    )
    left = [str(path) for path in folder.rglob(".*.partial")]
    found = f"A process that was killed left {plural(len(left), 'temporary file')}."
    remove = f"If no process writes here: rm -r {shlex.join(left)}"
    yield from judge("temporary files", "None is left.", (left, "warning", found, remove))
    return not wrong


def check_lock(path: Path, mend: str) -> Iterator[Check]:
    """Check whether another process holds a lock, if there is one."""
    if path.exists():
        yield from attempt("lock", partial(_try_lock, path), "No other process holds it.", mend, "warning")


def _try_lock(path: Path) -> None:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # released when the file is closed, at once
        except BlockingIOError:
            holder = file.read().decode().strip() or "another process"
            raise RunError(f"{path}: held by {holder}") from None


def diagnose(path: Path | None) -> list[Check]:
    """Check a run's TOML file, a run's, a server's or a site's folder, or this machine if `path` is None.

    Raises:
        RunError: The path does not exist, or is none of these.
    """
    checks = []
    try:
        for check in _subject(path):
            checks.append(check)  # one by one: what came before an error is kept
    except (ImportError, OSError) as error:
        mend = (
            "Give your user access to the file, or install the package: pip install '.[flower]' in your copy of "
            "trifed's repository"
        )
        checks.append(Check("access", "problem", f"{error}.", mend))
    return checks


def _subject(path: Path | None) -> Iterator[Check]:
    if path is None:
        from trifed.reports.doctor.machine import check_machine

        return check_machine()
    from trifed.reports.doctor import runs

    if path.is_file():
        return runs.check_run_file(path)
    if (path / "config.toml").is_file():
        return runs.check_run_folder(path)
    is_server = (path / "app/run.toml").is_file()
    if is_server or (path / "node.toml").is_file():
        from trifed.reports.doctor import sites  # needs the extra flower

        return sites.check_server_folder(path) if is_server else sites.check_site_folder(path)
    expected = (
        "expected a run's TOML file, a run's folder (with a config.toml), a server's folder (with an "
        "app/run.toml) or a site's folder (with a node.toml)"
    )
    if path.is_dir():
        raise RunError(f"{path}: got a folder without any of these files; {expected}")
    beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    raise RunError(
        f"{path}: there is no such file or folder{nearest(path.name, beside)}; {expected}. Correct the path, or "
        f"leave it out to check this machine"
    )
