"""Settings of the adapter that every client trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trifed.common.strict_settings import StrictSettings

AdapterKind = Literal["lora", "tri-matrix", "public-frames", "none"]
"""Kinds of adapter.

"lora" is plain LoRA. "tri-matrix" trains all of B·C·A. "public-frames" trains C alone between frozen projections
A and B, from the SVD of W0 unless the method makes its own. "none" trains the base model itself.
"""


class AdapterSettings(StrictSettings):
    """The adapter that every client trains."""

    rank: int = Field(8, ge=1, description="The rank r of the adapter; a core has r x r numbers.")
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="The dropout rate before A during training.")
    towers: Literal["both", "vision", "text"] = Field(
        "both", description="The tower that gets an adapter, for a model with a vision and a text tower."
    )
    target_modules: list[str] | Literal["auto", "all-linear"] = Field(
        "auto",
        description="Endings of the names of modules that get an adapter; 'auto' takes PEFT's choice for the "
        "architecture.",
    )
