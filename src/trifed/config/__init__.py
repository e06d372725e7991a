"""Settings of a run: one validated model, from TOML and flags, and how mistakes in it are reported."""

from typing import Any

from trifed.common.deprecated_names import renamed_attribute


def __getattr__(name: str) -> Any:
    return renamed_attribute(__name__, name)
