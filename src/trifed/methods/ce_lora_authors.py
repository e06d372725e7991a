"""CE-LoRA as its authors' released client does it, as far as that is known; the server was never released.

Li, Liu, Huang, Zhang, Yuan, Hong, "Communication-Efficient and Personalized Federated Foundation Model
Fine-Tuning via Tri-Matrix Adaptation", arXiv 2503.23869, IEEE Transactions on Multimedia 2026.

`ce-lora` with other defaults: A starts from N(0, 1e-3²), the scale α/r is 1, the LayerNorms train and stay at the
client, every round has a new AdamW whose learning rate falls to 0, the summary has up to three components of raw
features for each label with two examples, models are compared by CKA, and distances of data keep their noise.
`docs/equations.md` lists what else belongs to it and depends on the model: layers, pooling, and α for other ranks.

Trains A, C, B, the head and the LayerNorms. Sends C, and once, before round 1, a summary of the data, which can
show single examples: a client refuses to send it unless `privacy.small_components` allows that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from trifed.methods.base import Method
from trifed.methods.ce_lora import METHOD as CE_LORA
from trifed.methods.ce_lora import CeLoraOptions, with_parts

RANK = 8


class CeLoraAuthorsOptions(CeLoraOptions):
    """The options of `ce-lora` with the defaults of the authors' client."""

    model_similarity: Literal["cosine", "cka", "cka-biased"] = Field(
        "cka", description=CeLoraOptions.model_fields["model_similarity"].description
    )
    summary: Literal["projected", "raw"] = Field(
        "raw", description=CeLoraOptions.model_fields["summary"].description
    )
    noise_floor: bool = Field(False, description=CeLoraOptions.model_fields["noise_floor"].description)


METHOD: Method = replace(
    CE_LORA,
    name="ce-lora-authors",
    options=CeLoraAuthorsOptions,
    with_aggregation=lambda settings: with_parts(METHOD, settings),
    defaults={
        "adapter": {"rank": RANK, "alpha": RANK, "init_std": 1e-3, "train_norms": True},
        "training": {"optimizer_state": "reset", "schedule": "linear-each-round"},
    },
)
