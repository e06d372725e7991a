"""The base class of settings: unknown names are errors, and values cannot change after validation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictSettings(BaseModel):
    """A frozen table of settings without unknown names."""

    model_config = ConfigDict(extra="forbid", frozen=True)
