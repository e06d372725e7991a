"""Reading TOML files, with a clear message for every way in which that can fail."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from trifed.common.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """Return the values of a TOML file, not validated.

    Raises:
        ConfigError: The file does not exist, cannot be read, or is not UTF-8 or not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as error:
        raise ConfigError(
            ["there is no such file; `trifed run --help` shows one to start from"], str(path)
        ) from error
    except IsADirectoryError as error:
        raise ConfigError(
            ["got a folder, expected a file; to continue a run: trifed run --resume FOLDER"], str(path)
        ) from error
    except OSError as error:
        raise ConfigError([f"cannot be read ({error.strerror}); check its permissions"], str(path)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"not UTF-8 at byte {error.start}; TOML must be UTF-8, so save the file as UTF-8"], str(path)
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            [f"not valid TOML: {error}; `trifed run --help` shows a file to start from"], str(path)
        ) from error
