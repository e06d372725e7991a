"""pFedMe on plain LoRA: a personal model near a common one, by Moreau envelopes.

T. Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020 (arXiv 2006.08848).

Trains A, B and the head of a personal θ on loss + λ/2 ‖θ − w‖², where w starts at what was received. Every
`inner_steps` steps w moves to θ by a share ηλ of the distance. Sends w; θ is the client's model. The server moves
its w to the clients' mean by example count, by a share β of the distance, and sends w to all clients. LayerNorms
stay frozen.

Changed here: AdamW for the inner problem, each inner step on a new batch, so that every method takes the same
number of steps on the same batches; ηλ is one option, `share`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from pydantic import Field

from trifed.methods.base import (
    Method,
    Options,
    Proximal,
    ServerContext,
    State,
    Upload,
    average_by_examples,
    is_factor,
    is_head,
)


class PFedMeOptions(Options):
    """Options of the Moreau envelope and of the two steps."""

    strength: float = Field(
        0.1,
        gt=0,
        allow_inf_nan=False,
        description="λ, the strength of the pull of the personal model θ to the common model w.",
    )
    inner_steps: int = Field(1, ge=1, description="K, the optimiser steps on θ between two steps of w.")
    share: float = Field(0.5, gt=0, le=1, description="ηλ, the share of the distance to θ by which w moves.")
    beta: float = Field(
        1.0,
        gt=0,
        le=1,
        description="β, the share of the distance to the clients' mean by which the server's model moves.",
    )


def _start(options: Options, context: ServerContext) -> State:
    return {"common": context.start}


def _aggregate(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """w ← (1 − β) w + β Σ_j n_j w_j / Σ n, shape (n_values,)."""
    if not uploads:
        return state
    beta, before = cast(PFedMeOptions, options).beta, state["common"].astype(np.float64)
    averaged = average_by_examples(options, context, state, uploads)
    common = (1 - beta) * before + beta * averaged["mean"].astype(np.float64)
    return {**averaged, "mean": common.astype(np.float32), "common": common.astype(np.float32)}


def _proximal(options: Options) -> Proximal:
    chosen = cast(PFedMeOptions, options)
    return Proximal(strength=chosen.strength, share=chosen.share, every=chosen.inner_steps)


METHOD = Method(
    name="pfedme-lora",
    citation="T. Dinh et al., pFedMe, NeurIPS 2020, arXiv 2006.08848",
    adapter="lora",
    trains=lambda name: is_factor(name) or is_head(name),
    sends=lambda name: is_factor(name) or is_head(name),
    evaluated_model="trained",
    options=PFedMeOptions,
    start=_start,
    aggregate=_aggregate,
    proximal=_proximal,
)
