"""Settings of the adapter that every client trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trifed.common.strict_settings import StrictSettings

AdapterKind = Literal["lora", "tri-matrix", "public-frames", "none"]
"""Plain LoRA; B·C·A with all three trained; B·C·A in frozen frames, from the SVD of W0 unless the method makes its
own, where only C trains; no adapter, the base model itself."""


class AdapterSettings(StrictSettings):
    """The adapter that every client trains."""

    rank: int = Field(8, ge=1, description="r: a core has r x r numbers")
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="before A, while training")
    towers: Literal["both", "vision", "text"] = Field(
        "both", description="of a model with a vision and a text tower, which is adapted"
    )
    target_modules: list[str] | Literal["auto", "all-linear"] = Field(
        "auto", description="endings of module names; 'auto' is what PEFT knows for the architecture"
    )
