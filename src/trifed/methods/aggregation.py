"""Server parts that any averaging method can be given: who shares with whom, and how much each upload weighs.

For client i each value is Σ_j s_ij k_j θ_j / Σ_j s_ij k_j over the round's uploads. s_ij: 1 if client j shares
with client i, else 0. k_j: the weight of client j's value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from trifed import similarity as sim
from trifed.common.errors import RunError
from trifed.common.strict_settings import StrictSettings
from trifed.methods.base import (
    Features,
    Labels,
    Method,
    Options,
    ServerContext,
    State,
    SummarySeeds,
    Upload,
    average_by_examples,
    average_evenly,
)
from trifed.methods.packing import Layout, Vector
from trifed.methods.summaries import carry_over, projected

HEAD, BIAS = "head.weight", "head.bias"


class AggregationSettings(StrictSettings):
    """How the server averages the clients' uploads; for any method whose server averages."""

    weights: Literal["examples", "equal", "label-rows"] | None = Field(
        None,
        description="Weight of an upload in an average: by the client's training examples, all equal, or by "
        "examples with each row of the head by the client's examples of that label. Unset: the method's own rule.",
    )
    groups: Literal["all", "agreement", "given"] | None = Field(
        None,
        description="Clients whose uploads enter a client's average: all, those whose data summaries agree on the "
        "meaning of the labels, or those in the same list of `members`. Unset: the method's own rule.",
    )
    members: list[list[str]] = Field(
        [],
        description="With groups = 'given': lists of names of clients that share. A client in none of them shares "
        "with nobody.",
    )
    agreement: float = Field(
        2.0,
        ge=0,
        description="With groups = 'agreement': two clients share if their labels' means, or the contrasts "
        "between these, differ by less than this multiple of what noise explains. With 0 no client shares.",
    )

    rule: Literal["mean", "median", "trimmed-mean"] = Field(
        "mean",
        description="Kind of average: the weighted mean of the uploads, the median of each value, or the mean "
        "of each value without its largest and smallest. The last two weigh all uploads equally.",
    )
    screen: Literal["none", "multi-krum"] = Field(
        "none",
        description="Which uploads are left out of a round: none, or those that are farthest from the others "
        "(multi-Krum). That can also leave out honest clients whose data differ much from the others'.",
    )
    suspects: float = Field(
        0.2,
        ge=0,
        lt=0.5,
        description="Share of a round's uploads that may be hostile. A trimmed mean leaves out so many of the "
        "largest and of the smallest values, and multi-Krum so many uploads.",
    )
    norm_bound: float = Field(
        5.0,
        ge=0,
        allow_inf_nan=False,
        description="Largest length of an upload's change, in medians of the lengths in this round and the four "
        "before, with turns of the same turn. A longer change is scaled down to it. 0 sets no bound.",
    )
    most_examples: float = Field(
        10.0,
        ge=0,
        allow_inf_nan=False,
        description="Largest number of examples that an upload counts as, in medians of the clients' numbers. "
        "0 sets no limit.",
    )

    @field_validator("members")
    @classmethod
    def _a_client_is_in_one_list(cls, members: list[list[str]]) -> list[list[str]]:
        names = [name for group in members for name in group]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"got {', '.join(twice)} twice; expected each client in one list")
        return members

    @property
    def needs_summaries(self) -> bool:
        """True if the server needs the clients' data summaries."""
        return self.groups == "agreement" or self.weights == "label-rows"


@dataclass(frozen=True)
class GroupedMean:
    """A server that averages for each client within the client's group, by the settings' weights.

    State: `similarity_data`, (n_clients, n_clients), 1 up to what noise explains, or, with given groups, 1 within
    a group and 0 else; `examples` of each label,
    (n_clients, n_labels); `mixed`, (n_clients, n_values), the average for each client; `received`, (n_clients,),
    whether a client's average holds any upload.
    """

    settings: AggregationSettings

    def summarise(self, options: Options, features: Features, labels: Labels, seeds: SummarySeeds) -> sim.Summary:
        """Return the label counts, and one mean and variance for each label."""
        return sim.summarise(projected(features, seeds), labels, max_components=1, seed=seeds.own)

    def start(self, options: Options, context: ServerContext) -> State:
        """Return the state before round 1."""
        known = range(context.clients) if self.settings.needs_summaries else ()
        summaries = [context.summaries[client] for client in known]
        rows = max((shape[0] for name, shape in context.layout if name in (HEAD, BIAS)), default=0)
        examples = np.zeros((context.clients, rows))
        for client, summary in enumerate(summaries if rows else []):
            examples[client, summary.class_labels] = summary.class_counts
        total = examples.sum(axis=1)
        examples *= (at_most(total, self.settings.most_examples) / np.maximum(total, 1))[:, None]
        given = self.settings.groups == "given"
        return {
            "similarity_data": together(self.settings, context).astype(float) if given else agreement(summaries),
            "examples": examples,
            "mixed": np.tile(context.start, (context.clients, 1)),
            "received": np.zeros(context.clients, bool),
        }

    def aggregate(
        self, options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]
    ) -> State:
        """Average for each client; where all weights of a value are 0, the client's value stays."""
        sent = [upload.client for upload in uploads]
        rows, row = sim.different_rows((self._shares(state) | np.eye(context.clients, dtype=bool))[:, sent])
        equal = self.settings.weights == "equal"
        counts = np.array([1 if equal else upload.examples for upload in uploads], np.float64)[:, None]
        weights = np.concatenate([counts, state["examples"][sent].astype(np.float64)], axis=1)
        column = self._weight_columns(context.layout)
        total = (rows @ weights)[:, column]
        values = np.stack([upload.values for upload in uploads])
        if self.settings.rule == "mean":
            sums = rows @ (weights[:, column] * values)
            mean = np.divide(sums, total, out=np.zeros_like(total), where=total > 0).astype(np.float32)
        else:
            counts_at = weights[:, column] > 0
            mean = np.stack(
                [robust_mean(values, counts_at & (share > 0)[:, None], self.settings) for share in rows]
            )
        mixed = np.where((total > 0)[row], mean[row], state["mixed"].astype(np.float32))
        shares = np.zeros((context.clients, context.clients))
        shares[:, sent] = (rows * counts.T / np.maximum(rows @ counts, 1))[row]
        received = np.logical_or(state["received"], rows.max(axis=1)[row] > 0)
        return {**state, "mixed": mixed, "weights": shares, "received": received}

    def on_membership_change(
        self, options: Options, context: ServerContext, state: State, new_clients: Sequence[int]
    ) -> State:
        """Compare the summaries again; a client that starts over gets the mean of those that share with it."""
        fresh = carry_over(state, self.start(options, context), ("mixed", "received"), new_clients)
        for client in new_clients:
            others = self._shares(fresh)[client] & fresh["received"].astype(bool)
            if others.any():
                fresh["mixed"][client] = fresh["mixed"][others].mean(0)
                fresh["received"][client] = True
        return fresh

    def download(self, state: State, client: int) -> Vector | None:
        """Return a client's average, (n_values,); None before it holds any upload."""
        return state["mixed"][client].astype(np.float32) if state["received"][client] else None

    def _shares(self, state: State) -> NDArray[np.bool_]:
        """Return which clients share with which, (n_clients, n_clients)."""
        similarity = state["similarity_data"].astype(np.float64)
        if self.settings.groups == "given":
            return similarity > 0.5
        if self.settings.groups != "agreement":
            return np.ones(similarity.shape, bool)
        return similarity * self.settings.agreement > 1.0

    def _weight_columns(self, layout: Layout) -> NDArray[np.int64]:
        """Return each value's column of weights, (n_values,): 0 for the client's, 1 + y for label y's."""
        by_label = self.settings.weights == "label-rows"
        return np.concatenate([
            np.repeat(np.arange(1, 1 + shape[0]), math.prod(shape[1:])) if by_label and name in (HEAD, BIAS)
            else np.repeat(0, math.prod(shape))
            for name, shape in layout
        ])  # fmt: skip


@dataclass(frozen=True)
class RobustMean:
    """A server that sends all clients one median or trimmed mean."""

    settings: AggregationSettings

    def __call__(self, options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
        """Return the state of `average_evenly` with the mean that the settings ask for."""
        values = np.stack([upload.values for upload in uploads])
        mean = robust_mean(values, np.ones(values.shape, bool), self.settings)
        return {**average_evenly(options, context, state, uploads), "mean": mean}


def robust_mean(values: NDArray[np.float32], counts: NDArray[np.bool_], settings: AggregationSettings) -> Vector:
    """Return the median or the trimmed mean of each value over the uploads, (n_values,).

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018
    (arXiv 1803.01498).

    Args:
        values: (n_uploads, n_values).
        counts: Whether an upload's value counts, (n_uploads, n_values). A value without any is 0.
        settings: The rule, and the share of hostile uploads.
    """
    number = counts.sum(axis=0)
    ordered = np.sort(np.where(counts, values.astype(np.float64), np.inf), axis=0)
    cut = (number - 1) // 2 if settings.rule == "median" else np.ceil(settings.suspects * number).astype(np.int64)
    cut = np.clip(cut, 0, np.maximum(number - 1, 0) // 2)
    place = np.arange(len(values))[:, None]
    inner = (place >= cut) & (place < number - cut)
    total = np.where(inner, ordered, 0.0).sum(axis=0)
    mean: Vector = np.divide(total, number - 2 * cut, out=np.zeros(len(number)), where=number > 0).astype(
        np.float32
    )
    return mean


def at_most(examples: NDArray[np.float64], medians: float) -> NDArray[np.float64]:
    """Return numbers of examples, (n_clients,), limited to a multiple of the median of those above 0."""
    if not medians or not (examples > 0).any():
        return examples
    return np.minimum(examples, medians * np.median(examples[examples > 0]))


def agreement(summaries: Sequence[sim.Summary]) -> NDArray[np.float64]:
    """Return how well two clients' labels agree in meaning, (n_clients, n_clients): 1 up to what noise explains.

    Clients without labels, or without one in common, count as agreeing: nothing speaks against it.
    """
    labelled = len({int(label) for summary in summaries for label in summary.class_labels}) > 1
    ratio = sim.label_meaning_ratio(summaries) if labelled else np.ones((len(summaries), len(summaries)))
    return 1.0 / np.maximum(np.nan_to_num(ratio, nan=1.0), 1.0)


def together(settings: AggregationSettings, context: ServerContext) -> NDArray[np.bool_]:
    """Return which clients are in a list of `members` together, (n_clients, n_clients); each is with itself.

    Raises:
        RunError: The clients' names are not known.
    """
    if len(context.names) != context.clients:
        raise RunError(
            f"aggregation.groups: 'given' needs the clients' names, and {len(context.names)} of {context.clients} "
            "are known here"
        )
    group = {name: place for place, names in enumerate(settings.members) for name in names}
    own = np.array([group.get(name, -1 - client) for client, name in enumerate(context.names)], np.int64)
    return np.asarray(own[:, None] == own[None, :], np.bool_)


def with_aggregation(method: Method, settings: AggregationSettings) -> Method:
    """Return the method with its server following `settings`; unchanged where nothing is set.

    Use `can_aggregate` first: it says whether the method's server averages.
    """
    if settings.weights is None and settings.groups is None and settings.rule == "mean":
        return method
    if method.with_aggregation is not None:
        return method.with_aggregation(settings)
    plain = not settings.needs_summaries and settings.groups != "given"
    if plain and settings.rule != "mean":
        return replace(method, aggregate=RobustMean(settings))
    if plain:
        return replace(method, aggregate=average_evenly if settings.weights == "equal" else average_by_examples)
    server = GroupedMean(settings)
    return replace(
        method,
        summarise=server.summarise if settings.needs_summaries else method.summarise,
        start=server.start,
        aggregate=server.aggregate,
        download=server.download,
        on_membership_change=server.on_membership_change,
    )


def can_aggregate(method: Method) -> bool:
    """Return whether `with_aggregation` can change the method's server."""
    return method.with_aggregation is not None or method.aggregate in (average_by_examples, average_evenly)
