"""FedEx-LoRA: A and B are averaged, and the averaging error of B·A is added to the frozen weights.

Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large
Language Models", ACL 2025 (arXiv 2410.09432).

Trains A, B and the head. Sends A, B and the head. With weights w_i of the round's clients, the server sends the
means of A, of B and of the head, and R: the sum over all rounds of Σ w_i B_i A_i − (Σ w_i B_i)(Σ w_i A_i). Clients
compute with W0 + s (B A + R), so that averaging is exact: each begins a round with W0 + s Σ w_i (B_i A_i + R).

As we read it, and where we differ: the paper averages evenly, and we weigh by examples, as most methods here; the
mean is exact for any weights. It adds each round's residual to the weights. We send the sum R, (d_out, d_in) for
each adapted layer, in every download, so that a client that missed rounds has the right one. The residual of one
round has rank r·n or less for n clients, so as factors it would be r·n (d_out + d_in) numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trifed.methods.base import (
    Method,
    Options,
    ServerContext,
    State,
    Upload,
    average_by_examples,
    is_factor,
    is_head,
    is_residual,
)
from trifed.methods.packing import pack, unpack


def _aggregate(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """Average A, B and the head; R ← R + Σ w_i B_i A_i − (Σ w_i B_i)(Σ w_i A_i), (d_out, d_in) for each layer.

    State: `mean`, (n_values,), packed by `context.received`; `weights`, (n_clients, n_clients).
    """
    if not uploads:
        return state
    averaged = average_by_examples(options, context, state, uploads)
    mean = unpack(averaged["mean"].astype(np.float32), context.layout)
    before = unpack(state["mean"].astype(np.float32), context.received) if state else {}
    total = sum(upload.examples for upload in uploads)
    sent = [(upload.examples / total, unpack(upload.values, context.layout)) for upload in uploads]
    tensors = dict(mean)
    for name, shape in context.received:
        if is_residual(name):
            a, b = (name.replace(".lora_R.", f".lora_{factor}.") for factor in "AB")
            exact = sum(share * (each[b].astype(np.float64) @ each[a]) for share, each in sent)
            change = exact - mean[b].astype(np.float64) @ mean[a]
            tensors[name] = (before.get(name, np.zeros(shape)) + change).astype(np.float32)
    return {**averaged, "mean": pack(tensors, context.received)}


METHOD = Method(
    name="fedex-lora",
    citation="Singhal, Ponkshe, Vepakomma, FedEx-LoRA, ACL 2025, arXiv 2410.09432",
    adapter="lora-residual",
    trains=lambda name: is_factor(name) or is_head(name),
    sends=lambda name: is_factor(name) or is_head(name),
    receives=lambda name: is_factor(name) or is_residual(name) or is_head(name),
    aggregate=_aggregate,
)
