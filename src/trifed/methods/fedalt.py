"""FedALT: every client trains a LoRA of its own beside a frozen mean of the others' LoRAs, weighed by a mixer.

Bian, Wang, Zhang, Xu, "FedALT: Federated Fine-Tuning through Adaptive Local Training with Rest-of-World LoRA",
AAAI 2026 (arXiv 2503.11880).

Trains A, B, the mixer M and the head. Sends A and B. Each client receives the rest of the world: the mean of the
other clients' A and the mean of their B, which are frozen beside its own. It goes on from its own A and B, and no
average replaces them. y = W0 x + s (g_0 B_r A_r x + g_1 B A x) with g = softmax(M x), for each token.

As we read it, the mean is even, and the mixer stays with the client. Ours: the head stays with the client too (the
paper has language models without one), a client that was absent counts with its last upload, and before the first
download the rest is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trifed.methods.base import (
    Method,
    Options,
    ServerContext,
    State,
    Upload,
    is_factor,
    is_head,
    is_mixer,
    is_rest,
)
from trifed.methods.packing import Vector, pack, unpack
from trifed.methods.summaries import carry_over


def _start(options: Options, context: ServerContext) -> State:
    """Return `own`, (n_clients, n_values), packed by `context.received`, and whether it is `known`."""
    values = sum(math.prod(shape) for _, shape in context.received)
    return {"own": np.zeros((context.clients, values), np.float32), "known": np.zeros(context.clients, bool)}


def _aggregate(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """Keep every client's last A and B, under the names that they have at the others."""
    own, known = state["own"].astype(np.float32), state["known"].astype(bool)
    for upload in uploads:
        tensors = unpack(upload.values, context.layout)
        own[upload.client] = pack({_at_others(name): t for name, t in tensors.items()}, context.received)
        known[upload.client] = True
    others = known[None, :] & ~np.eye(context.clients, dtype=bool)
    return {"own": own, "known": known, "weights": others / np.maximum(others.sum(1, keepdims=True), 1)}


def _at_others(name: str) -> str:
    """Return the name of a factor in the second LoRA."""
    return name.replace(".lora_A.", ".lora_rest_A.").replace(".lora_B.", ".lora_rest_B.")


def _download(state: State, client: int) -> Vector | None:
    """Return the mean over the other clients, (n_values,); None while none is known."""
    others = state["known"].astype(bool)
    others[client] = False
    if not others.any():
        return None
    mean: Vector = state["own"][others].astype(np.float64).mean(0).astype(np.float32)
    return mean


def _on_membership_change(
    options: Options, context: ServerContext, state: State, new_clients: Sequence[int]
) -> State:
    return carry_over(state, _start(options, context), ("own", "known"), new_clients)


METHOD = Method(
    name="fedalt",
    citation="Bian et al., FedALT, AAAI 2026, arXiv 2503.11880",
    adapter="lora-mixture",
    trains=lambda name: is_factor(name) or is_mixer(name) or is_head(name),
    sends=is_factor,
    receives=is_rest,
    start=_start,
    aggregate=_aggregate,
    download=_download,
    on_membership_change=_on_membership_change,
)
