"""Cores shared by relevance, after Co-LoRA: each client gets an average of the cores of clients like it.

Seo, Kim, Lee, Choi, Tuytelaars, "Co-LoRA: Collaborative Model Personalization on Heterogeneous Multi-Modal
Clients" (whose framework is FedMosaic), ICLR 2026 (arXiv 2506.11024).

Trains C, (r, r), between public projections (see `fed_xs`), and the head. Sends C. The server averages the cores
for each client, C̄_i = Σ_j w_ij C_j, with w from a softmax over the similarity of the clients' cores. The head
stays with the client; the paper's models have none. LayerNorms stay frozen.

What differs from the paper, as we read it and its code, hence the name:

- Similarity is the cosine of the changes of the clients' cores. In the paper each client sends a compressed
  gradient of a small frozen model on its data; here nothing but cores is sent.
- A layer has one core, which starts a round from the received average. There a layer has two modules, the client's
  own and the frozen average of the *other* clients' modules, and a gate that is learned mixes their outputs; here
  the client's own core has a fixed weight in its average, `self_weight`.
- A and B come from the SVD of the frozen weight. There they are orthonormal, and are aligned on public data across
  architectures; here all clients have the same base model.
- A module is C alone, in every adapted layer. There it has a vector of r numbers beside it, B (C A x + q), and
  lies in some blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from pydantic import Field

from trifed import similarity as sim
from trifed.methods.base import Method, Options, ServerContext, State, Upload, is_core, is_head
from trifed.methods.packing import Vector
from trifed.methods.summaries import carry_over


class CoLoraLikeOptions(Options):
    """Options of the server's weighted averages."""

    self_weight: float = Field(0.5, ge=0, le=1, description="Weight w_ii of a client's own core in its average.")
    temperature: float = Field(
        0.5,
        gt=0,
        description="Temperature of the softmax that turns the similarities of the other clients into weights.",
    )


def _start(options: Options, context: ServerContext) -> State:
    return {
        "cores": np.tile(context.start, (context.clients, 1)),
        "last_round": np.full(context.clients, -1, np.int64),
    }


def _aggregate(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """C̄ = W C, (n_clients, n_values), over the last core of each client; a client never seen has weight 0."""
    chosen = cast(CoLoraLikeOptions, options)
    cores, last_round = state["cores"].copy(), state["last_round"].astype(np.int64)
    for upload in uploads:
        cores[upload.client], last_round[upload.client] = upload.values, upload.round
    rank, seen = context.layout[0][1][0], last_round >= 0
    change = (cores.astype(np.float64) - context.start).reshape(context.clients, -1, rank, rank)
    similarity = sim.cosine(change)
    own, none = (
        sim.mixing_weights(similarity, self_weight=share, temperature=chosen.temperature, decay=1.0 * seen)
        for share in (chosen.self_weight, 0.0)
    )
    # A new client's core is untrained, so it gets the even mean of the others alone.
    weights = np.where(seen[:, None], own, none)
    return {
        "cores": cores,
        "last_round": last_round,
        "similarity_model": similarity,
        "weights": weights,
        "mixed": sim.mix(weights, cores).astype(np.float32),
    }


def _on_membership_change(
    options: Options, context: ServerContext, state: State, new_clients: Sequence[int]
) -> State:
    """Forget the cores of clients that start over, and average again."""
    fresh = carry_over(state, _start(options, context), ["cores", "last_round"], new_clients)
    return _aggregate(options, context, fresh, []) if "mixed" in state else fresh


def _download(state: State, client: int) -> Vector | None:
    return state["mixed"][client].astype(np.float32) if "mixed" in state else None


METHOD = Method(
    name="co-lora-like",
    citation="after Seo et al., Co-LoRA, ICLR 2026, arXiv 2506.11024",
    adapter="public-frames",
    trains=lambda name: is_core(name) or is_head(name),
    sends=is_core,
    evaluated_model="trained",
    options=CoLoraLikeOptions,
    start=_start,
    aggregate=_aggregate,
    download=_download,
    on_membership_change=_on_membership_change,
)
