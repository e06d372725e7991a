"""One likelihood, shared by the clients that agree on what their labels mean; each keeps its own prior.

Made here. Where clients only differ in how often each label occurs, p_i(y | x) ∝ π_i(y) p(x | y): only the prior
π_i is a client's own. With log π_i as the bias of its head, the rest learns log p(x | y), the same for all, and
sharing it costs a client nothing. The bias as prior is that of Menon et al., "Long-tail learning via logit
adjustment", ICLR 2021 (arXiv 2007.07314), by client as in Zhang et al., "Federated learning with label
distribution skew via logits calibration", ICML 2022 (arXiv 2209.00189).

C between public frames (see `fed_xs`) and the head train. C and the head's weight are sent, in one bit a number
unless `wire.bits` says otherwise; the bias stays. Once, before round 1, a client sends how many examples of each
label it has, and mean and variances of those with twenty or more. Two clients share unless these show that their
labels mean something else. The server averages C by examples, and each label's row of the head by examples of that
label: who has none has nothing to say about it. LayerNorms stay frozen.

What a client uses in the end lies three quarters of the way from what it has just trained to what it received,
its head's weight times the factor in [0, 1] that suits its validation examples: where the likelihood was not
learned, the prior decides, which then counts the labels of those examples too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trifed import similarity as sim
from trifed.methods.base import (
    Features,
    Labels,
    Method,
    Options,
    ServerContext,
    State,
    SummarySeeds,
    Upload,
    is_core,
    is_head,
)
from trifed.methods.packing import Tensors, Vector
from trifed.methods.summaries import carry_over, projected

HEAD, BIAS = "head.weight", "head.bias"


class OwnPriorOptions(Options):
    """How the prior is made, and who shares."""

    smoothing: float = Field(0.1, gt=0, description="examples added to those of every label in the prior")
    apart: float = Field(2.0, ge=0, description="times the noise at which labels differ in meaning; 0: all alone")


def _local_init(options: Options, labels: Labels, n_labels: int) -> Tensors:
    """log π, (n_labels,): π_y = (n_y + smoothing) / (n + smoothing · n_labels)."""
    counts = np.bincount(labels, minlength=n_labels) + cast(OwnPriorOptions, options).smoothing
    return {BIAS: np.log(counts / counts.sum()).astype(np.float32)}


def _summarise(options: Options, features: Features, labels: Labels, seeds: SummarySeeds) -> sim.Summary:
    return sim.summarise(projected(features, seeds), labels, max_components=1, seed=seeds.own)


def _start(options: Options, context: ServerContext) -> State:
    """`similarity_data`: 1 up to what noise explains; `examples`: of each label, (n_clients, n_labels)."""
    summaries = [context.summaries[client] for client in range(context.clients)]
    rows = max((shape[0] for name, shape in context.layout if name == HEAD), default=0)
    examples = np.zeros((context.clients, rows))
    for client, summary in enumerate(summaries if rows else []):
        examples[client, summary.class_labels] = summary.class_counts
    # Without labels, or without one in common, nothing speaks against it.
    labelled = len({int(label) for summary in summaries for label in summary.class_labels}) > 1
    ratio = sim.shared_label_ratio(summaries) if labelled else np.ones((len(summaries), len(summaries)))
    return {
        "similarity_data": 1.0 / np.maximum(np.nan_to_num(ratio, nan=1.0), 1.0),
        "examples": examples,
        "mixed": np.tile(context.start, (context.clients, 1)),
        "received": np.zeros(context.clients, bool),
    }


def _aggregate(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """For client i each value is Σ_j s_ij k_j θ_j / Σ_j s_ij k_j over the round's uploads.

    s_ij: does j share with i? k_j: examples that stand behind j's value, of one label in that label's row of the
    head. Where that is 0 for all, what i has stays.
    """
    sent = [upload.client for upload in uploads]
    rows, row = sim.different_rows((_agree(options, state) | np.eye(context.clients, dtype=bool))[:, sent])
    counts = np.array([upload.examples for upload in uploads], np.float64)[:, None]
    behind = np.concatenate([counts, state["examples"][sent].astype(np.float64)], axis=1)
    column = np.concatenate([  # which column of `behind` is a value's k
        np.repeat(np.arange(1, 1 + shape[0]), shape[1]) if name == HEAD else np.repeat(0, int(np.prod(shape)))
        for name, shape in context.layout
    ])  # fmt: skip
    total = (rows @ behind)[:, column]
    sums = rows @ (behind[:, column] * np.stack([upload.values for upload in uploads]))
    mean = np.divide(sums, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)
    mixed = np.where((total > 0)[row], mean[row], state["mixed"].astype(np.float32))
    weights = np.zeros((context.clients, context.clients))
    weights[:, sent] = (rows * counts.T / np.maximum(rows @ counts, 1))[row]
    received = np.logical_or(state["received"], rows.max(axis=1)[row] > 0)
    return {**state, "mixed": mixed, "weights": weights, "received": received}


def _on_membership_change(options: Options, context: ServerContext, state: State, anew: Sequence[int]) -> State:
    """Labels are compared again; who begins anew gets the mean of what those have that share with it."""
    fresh = carry_over(state, _start(options, context), ("mixed", "received"), anew)
    for client in anew:
        others = _agree(options, fresh)[client] & fresh["received"].astype(bool)
        if others.any():
            fresh["mixed"][client] = fresh["mixed"][others].mean(0)
            fresh["received"][client] = True
    return fresh


def _agree(options: Options, state: State) -> NDArray[np.bool_]:
    """Who shares with whom, (n_clients, n_clients)."""
    return state["similarity_data"].astype(np.float64) * cast(OwnPriorOptions, options).apart > 1.0


def _download(state: State, client: int) -> Vector | None:
    return state["mixed"][client].astype(np.float32) if state["received"][client] else None


METHOD = Method(
    name="own-prior",
    citation="trifed; bias as prior after Menon et al., ICLR 2021, arXiv 2007.07314",
    adapter="public-frames",
    trains=lambda name: is_core(name) or is_head(name),
    sends=lambda name: is_core(name) or name == HEAD,
    evaluated_model="between",
    calibrated=True,
    options=OwnPriorOptions,
    start=_start,
    aggregate=_aggregate,
    download=_download,
    summarise=_summarise,
    on_membership_change=_on_membership_change,
    local_init=_local_init,
    defaults={"adapter": {"rank": 32}, "wire": {"bits": 1}, "training": {"learning_rate": 0.02}},
)
