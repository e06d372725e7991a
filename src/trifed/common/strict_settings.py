"""The base of all settings: unknown names are refused, and values do not change after validation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictSettings(BaseModel):
    """A frozen table of settings that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
