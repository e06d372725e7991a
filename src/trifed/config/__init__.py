"""Settings of a run: one validated model, from TOML and flags, and how mistakes in it are reported."""

from typing import Any

from trifed.common.deprecated_names import moved_attribute


def __getattr__(name: str) -> Any:
    return moved_attribute("trifed.config", name)
