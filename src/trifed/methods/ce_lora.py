"""CE-LoRA: only the small cores are sent, and each client gets its own average of them.

Li, Liu, Huang, Zhang, Yuan, Hong, "Communication-Efficient and Personalized Federated Foundation Model
Fine-Tuning via Tri-Matrix Adaptation", arXiv 2503.23869, IEEE Transactions on Multimedia 2026.

Trains A, C, B and the head. Sends C, and once, before round 1, a summary of the data. A, B and the head stay
with the client. The server averages the cores for each client, C̄_i = Σ_j w_ij C_j, with w from the similarity of
data and of models, S = λ S_data + (1 − λ) S_model. The paper does not fix λ, the temperature of the softmax, the
self-weight and the decay for absent clients: these are options here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trifed import similarity as sim
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ModelError
from trifed.methods.aggregation import AggregationSettings, agreement, together
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
    is_factor,
    is_head,
)
from trifed.methods.packing import Vector
from trifed.methods.summaries import carry_over, projected
from trifed.similarity.summary import MOST_DIM

OWN_RULES = AggregationSettings()
BY_EXAMPLES = ("examples", "label-rows")
"""Weights by which a client's examples count; no head is sent, so label rows are the same as examples."""


class CeLoraOptions(Options):
    """Options of the server's weighted averages."""

    data_share: float = Field(0.5, ge=0, le=1, description="λ, the share of data similarity in S.")
    self_weight: float = Field(0.5, ge=0, le=1, description="Weight w_ii of a client's own core in its average.")
    others: Literal["similarity", "uniform"] = Field(
        "similarity",
        description="Weights of the others' cores in a client's average: by similarity, or equal.",
    )
    temperature: float = Field(
        0.1,
        gt=0,
        description="Temperature of the softmax that turns the similarities of the other clients into weights.",
    )
    model_similarity: Literal["cosine", "cka", "cka-biased"] = Field(
        "cosine", description="Measure of the similarity of two clients' models, on the change of their cores."
    )
    summary: Literal["projected", "raw"] = Field(
        "projected",
        description="Content of a data summary: features projected to 64 dimensions, with at least 20 examples "
        "for each mean and variance, or 'raw' features, with up to three means and variances of each label that "
        "has two examples. privacy.small_components refuses the second where examples are few.",
    )
    match_labels: bool = Field(
        False, description="Compare examples of the same label only when the data of two clients are compared."
    )
    noise_floor: bool = Field(
        True,
        description="Subtract from the distances of data what the noise of each client's own sample explains. "
        "Without it groups of clients are found better.",
    )
    memory: float = Field(5.0, gt=0, description="Rounds after which the core of an absent client counts 1/e.")

    def problems(self, adapter: AdapterSettings) -> list[str]:
        """Return a message for each option without a meaning.

        The debiased kernel alignment divides by r − 3. The cost of labels that do not match is that of features of
        norm 1.
        """
        rules = [
            (
                self.model_similarity == "cka" and adapter.rank < 4,
                f"method.model_similarity: 'cka' needs adapter.rank of at least 4, got {adapter.rank}; use "
                "'cosine'",
            ),
            (
                self.match_labels and self.summary == "raw",
                "method.match_labels: compares projected features, and method.summary is 'raw'; leave one of them "
                "out",
            ),
        ]
        return [message for wrong, message in rules if wrong]

    def raw_summary(self) -> bool:
        """Return whether data summaries are of the base's features as they are, and not of their projection."""
        return self.summary == "raw"


def _summarise(options: Options, features: Features, labels: Labels, seeds: SummarySeeds) -> sim.Summary:
    chosen = cast(CeLoraOptions, options)
    if chosen.summary == "projected":
        return sim.summarise(projected(features, seeds), labels, seed=seeds.own, match_labels=chosen.match_labels)
    if features.shape[1] > MOST_DIM:
        raise ModelError(
            f"method.summary: got 'raw', but the base model has {features.shape[1]} features, and a summary at "
            f"most {MOST_DIM}; set it to 'projected'"
        )
    return sim.summarise(
        features, labels, floor=1, smallest_class=2, seed=seeds.own, with_noise_floor=chosen.noise_floor
    )


def _start(options: Options, context: ServerContext, parts: AggregationSettings = OWN_RULES) -> State:
    summaries = [context.summaries[client] for client in range(context.clients)]
    chosen = cast(CeLoraOptions, options)
    distances = sim.pairwise_distances(summaries, match_labels=chosen.match_labels)
    floors = np.array([summary.self_distance * chosen.noise_floor for summary in summaries])
    state: State = {
        "cores": np.tile(context.start, (context.clients, 1)),
        "last_round": np.full(context.clients, -1, np.int64),
        "similarity_data": sim.similarity_from_distances(sim.denoise(distances, floors)),
    }
    if parts.groups == "agreement":
        state["agreement"] = agreement(summaries) * parts.agreement > 1.0
    elif parts.groups == "given":
        state["agreement"] = together(parts, context)
    if parts.weights in BY_EXAMPLES:
        state["examples"] = np.zeros(context.clients)
    return state


def _model_similarity(measure: str, context: ServerContext, cores: NDArray[np.generic]) -> NDArray[np.float64]:
    """S_model (n_clients, n_clients) from the change of all cores, (n_clients, n_layers, r, r)."""
    rank = context.layout[0][1][0]
    change = (cores.astype(np.float64) - context.start).reshape(context.clients, -1, rank, rank)
    return sim.cosine(change) if measure == "cosine" else sim.linear_cka(change, debiased=measure == "cka")


def _aggregate(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """C̄ = W C, (n_clients, n_values); a client absent for a rounds counts exp(−a / memory), one never seen 0."""
    chosen = cast(CeLoraOptions, options)
    cores, last_round = state["cores"].copy(), state["last_round"].astype(np.int64)
    after = dict(state)
    if "examples" in state:
        after["examples"] = state["examples"].copy()
    for upload in uploads:
        cores[upload.client], last_round[upload.client] = upload.values, upload.round
        if "examples" in state:
            after["examples"][upload.client] = upload.examples
    age = last_round.max() - last_round
    decay = np.where(last_round >= 0, np.exp(-age / chosen.memory), 0.0)
    if "examples" in state:
        decay = decay * (after["examples"].astype(np.float64) / max(1.0, float(after["examples"].max())))
    s_data = state["similarity_data"].astype(np.float64)
    s_model = _model_similarity(chosen.model_similarity, context, cores)
    both = sim.combine(s_data, s_model, data_share=chosen.data_share)
    if chosen.others == "uniform":
        both = np.ones_like(both)
    allowed = state["agreement"].astype(bool) if "agreement" in state else None
    own, none = (
        sim.mixing_weights(both, self_weight=share, temperature=chosen.temperature, decay=decay, allowed=allowed)
        for share in (chosen.self_weight, 0.0)
    )
    # A new client's core is untrained, so it gets the cores of the others alone, by similarity of data.
    weights = np.where((last_round >= 0)[:, None], own, none)
    return {
        **after,
        "cores": cores,
        "last_round": last_round,
        "similarity_data": s_data,
        "similarity_model": s_model,
        "weights": weights,
        "mixed": sim.mix(weights, cores).astype(np.float32),
    }


def _on_membership_change(
    options: Options,
    context: ServerContext,
    state: State,
    new_clients: Sequence[int],
    parts: AggregationSettings = OWN_RULES,
) -> State:
    """Compare the data again; a client that starts over gets the average of the others by similarity of data."""
    names = [name for name in ("cores", "last_round", "examples") if name in state]
    fresh = carry_over(state, _start(options, context, parts), names, new_clients)
    return _aggregate(options, context, fresh, []) if "mixed" in state else fresh


def with_parts(method: Method, settings: AggregationSettings) -> Method:
    """Return `ce-lora` or a variant of it, with averages within groups only, or in proportion to examples too."""
    change = partial(_on_membership_change, parts=settings)
    return replace(method, start=partial(_start, parts=settings), on_membership_change=change)


def _download(state: State, client: int) -> Vector | None:
    return state["mixed"][client].astype(np.float32) if "mixed" in state else None


METHOD: Method = Method(
    name="ce-lora",
    citation="Li et al., CE-LoRA, IEEE Transactions on Multimedia 2026, arXiv 2503.23869",
    adapter="tri-matrix",
    trains=lambda name: is_core(name) or is_factor(name) or is_head(name),
    sends=is_core,
    evaluated_model="trained",
    options=CeLoraOptions,
    start=_start,
    aggregate=_aggregate,
    download=_download,
    summarise=_summarise,
    on_membership_change=_on_membership_change,
    with_aggregation=lambda settings: with_parts(METHOD, settings),
)
