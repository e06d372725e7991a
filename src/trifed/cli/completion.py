"""Values that the shell completes: names of methods, tasks, splits and settings.

The shell calls the program at each press of the tab key, so these functions import as little as they can.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args


def methods(incomplete: str) -> list[str]:
    """Return the methods that begin with a text."""
    from trifed.methods import METHODS

    return _beginning(METHODS, incomplete)


def baselines(incomplete: str) -> list[str]:
    """Return the methods that begin with a text, and the name of a run without its exchange."""
    from trifed.methods import METHODS
    from trifed.methods.local import ALONE

    return _beginning([*METHODS, ALONE], incomplete)


def tasks(incomplete: str) -> list[str]:
    """Return the tasks that begin with a text."""
    from trifed.config.settings import TaskName

    return _beginning(get_args(TaskName), incomplete)


def settings(incomplete: str) -> list[str]:
    """Return the settings that begin with a text, as `--set` takes them."""
    from trifed.reports.settings import setting_names

    return _beginning([f"{name}=" for name in setting_names()], incomplete)


def _beginning(names: Iterable[str], text: str) -> list[str]:
    return [name for name in names if name.startswith(text)]
