"""Read TOML files, with a clear message for every kind of failure."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from trifed.common.errors import ConfigError

PROBLEMS: dict[type[Exception], str] = {
    FileNotFoundError: "there is no such file; `trifed run --help` shows one to start from",
    IsADirectoryError: "got a folder, expected a file; to continue a run: trifed run --resume FOLDER",
    OSError: "cannot be read ({error.strerror}); check its permissions",
    UnicodeDecodeError: "not UTF-8 at byte {error.start}; TOML must be UTF-8, so save the file as UTF-8",
    tomllib.TOMLDecodeError: "not valid TOML: {error}; `trifed run --help` shows a file to start from",
}
"""Error of reading a file -> what the user is told; the first kind that fits counts."""


def read_toml(path: Path) -> dict[str, Any]:
    """Return the values of a TOML file, not validated.

    Raises:
        ConfigError: The file does not exist, cannot be read, or is not UTF-8 or not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except tuple(PROBLEMS) as error:
        problem = next(text for kind, text in PROBLEMS.items() if isinstance(error, kind))
        raise ConfigError([problem.format(error=error)], str(path)) from error
