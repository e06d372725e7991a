"""The base class of settings: unknown names are errors, and values cannot change after validation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictSettings(BaseModel):
    """A frozen table of settings without unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def refuse(*rules: tuple[object, str]) -> None:
    """Raise a ValueError with the message of the first rule whose condition is true, for pydantic validators."""
    for wrong, message in rules:
        if wrong:
            raise ValueError(message)
