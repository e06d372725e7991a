"""Settings of the adapter that every client trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trifed.common.strict_settings import StrictSettings

AdapterKind = Literal["lora", "lora-residual", "lora-mixture", "lora-dual", "tri-matrix", "public-frames", "none"]
"""Kinds of adapters.

- lora: plain LoRA.
- lora-residual: plain LoRA and a full matrix R in each adapted layer, which never trains: B·A + R.
- lora-mixture: two LoRAs in each adapted layer, and a mixer that weighs them for each token.
- lora-dual: two LoRAs in each adapted layer, weighed for each example by its likeness to the training examples.
- tri-matrix: B·C·A; all three train.
- public-frames: B·C·A with frozen projections A and B, by default from the SVD of W0; only C trains.
- none: no adapter; the base model itself trains.
"""


class AdapterSettings(StrictSettings):
    """The adapter that every client trains."""

    rank: int = Field(8, ge=1, description="Each adapter has this rank r; a core has r x r numbers.")
    alpha: float = Field(
        16.0, gt=0, allow_inf_nan=False, description="The adapter's update is scaled by alpha / rank."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="The inputs of A are dropped with this probability during training."
    )
    init_std: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="A starts with normal numbers of this standard deviation. Unset: Kaiming-uniform, as in PEFT. "
        "Methods with shared projections do not use it.",
    )
    start: str | None = Field(
        None,
        description="All clients start from this adapter, not from a new one: a folder of PEFT's save_pretrained, "
        "or a client's folder, such as runs/NAME/clients/CLIENT.",
    )
    towers: Literal["both", "vision", "text"] = Field(
        "both", description="In a model with a vision and a text tower, these towers get adapters."
    )
    target_modules: list[str] | Literal["auto", "all-linear"] = Field(
        "auto",
        description="These layers get adapters: endings of module names, 'all-linear', or 'auto' for PEFT's "
        "choice for the architecture.",
    )
    train_tokens: list[str] = Field(
        [],
        description="The embeddings of these tokens train too, for example those of tokens that were added "
        "to the tokenizer. They stay at the client.",
    )
    train_norms: bool = Field(
        False,
        description="The LayerNorms and RMSNorms of the towers with adapters train too. They stay at the client.",
    )
