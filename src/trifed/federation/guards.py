"""Checks before a release: an update or a summary that was made from too little data can show single examples.

The update of a core C (r, r), or of a factor A or B, of a layer that has read the tokens x_1 … x_t is a sum of t
terms, each with A x_s in it. With t < r these span a space that the update reveals, and every token of the
vocabulary can be tried on it: the span attack of Petrov et al., "DAGER: Exact Gradient Inversion for Large
Language Models", NeurIPS 2024, arXiv 2405.15586. From r tokens on everything is in the span; the guard asks for
twice as many.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import GuardError, RunError
from trifed.config.settings import Guarding, PrivacySettings, TrainingSettings
from trifed.federation.client_update import ClientDataset
from trifed.federation.training.batches import RoundRandom, round_batches
from trifed.methods.base import is_core, is_factor
from trifed.methods.packing import Layout
from trifed.similarity import Summary

FLOOR = 20
"""Least number of examples from which a mean and a variance are computed."""
WAY_OUT = 'or allow it: privacy.{} = "warn", or "allow" for no warning'


@dataclass(frozen=True)
class Few:
    """The shortage of an upload: `tokens` different tokens, from `examples` examples; `needed` are required."""

    round: int
    tokens: int
    examples: int
    needed: int

    def __str__(self) -> str:
        examples = "1 example" if self.examples == 1 else f"{self.examples} examples"
        return f"{self.tokens} different tokens of {examples} in round {self.round}"


@dataclass
class ReleaseGuards:
    """The guards of one client.

    Attributes:
        warned: Settings whose first warning was given.
        new_warnings: Warnings that are still to be logged.
    """

    settings: PrivacySettings
    warned: set[str] = field(default_factory=set)
    new_warnings: list[str] = field(default_factory=list)

    def check_upload(
        self, dataset: ClientDataset, layout: Layout, training: TrainingSettings, seed: int, round_number: int
    ) -> None:
        """Check a round's upload before training; noise bounds what an upload shows, and needs no check.

        Raises:
            GuardError: The upload is made from too few tokens, and the settings refuse that.
        """
        if not self.settings.update and not self.settings.training:
            few = few_tokens(dataset, layout, training, seed, round_number)
            self._apply("few_tokens", self.settings.few_tokens, too_few({dataset.name: few}) if few else "")

    def check_summary(self, summary: Summary) -> None:
        """Check a summary without noise before it is released.

        Raises:
            GuardError: The summary has small components, and the settings refuse that.
        """
        self._apply("small_components", self.settings.small_components, small_components(summary))

    def _apply(self, setting: str, policy: Guarding, problem: str) -> None:
        if problem and policy == "refuse":
            raise GuardError(problem)
        if problem and policy == "warn" and setting not in self.warned:
            self.warned.add(setting)
            self.new_warnings.append(problem)


def tokens_needed(layout: Layout, layers: str = "") -> int:
    """Return the different tokens that an upload needs: twice the largest rank of a core or factor in it.

    The whole model shows its tokens whatever their number, by the rows of the embedding that changed. No number of
    tokens helps there.

    Args:
        layout: Names and shapes of the tensors that are sent.
        layers: Prefix of the names of the layers to consider; the result is 0 if there are none.
    """
    sent = [shape for name, shape in layout if name.startswith(layers) and (is_core(name) or is_factor(name))]
    return 2 * max(map(min, sent), default=0)


def few_tokens(
    client: ClientDataset, layout: Layout, training: TrainingSettings, seed: int, number: int
) -> Few | None:
    """Return the shortage of tokens in a client's round `number`; None if there is none, or nothing to send."""
    data = client.train
    parts = data.inputs(0) if len(data) else {}
    needed = {layers: count for layers in parts if (count := tokens_needed(layout, layers))}
    seen: dict[str, set[Hashable]] = {layers: set() for layers in needed}
    light = _rows_of_little_weight(client)
    rows: set[int] = set()
    for batch in round_batches(data.lengths, training, RoundRandom.of(seed, number, client.index)):
        batch = batch[~light[batch]]  # they hardly change the upload, so they do not hide the others
        for row in set(batch.tolist()) - rows:
            inputs = data.inputs(row)
            for layers, tokens in seen.items():
                tokens |= inputs[layers]
        rows.update(batch.tolist())
        if all(len(seen[layers]) >= needed[layers] for layers in needed):
            return None
    short = (layers for layers in needed if len(seen[layers]) < needed[layers])
    return next((Few(number, len(seen[layers]), len(rows), needed[layers]) for layers in short), None)


LIGHT = 0.05
"""Share of the largest class weight up to which a training example does not count."""


def _rows_of_little_weight(client: ClientDataset) -> NDArray[np.bool_]:
    """Return which training examples hardly count in the loss, because their label's weight is small; (n,)."""
    if client.class_weights is None or not len(client.train):
        return np.zeros(len(client.train), np.bool_)
    weights = np.asarray(client.class_weights, np.float64)[client.train.labels]
    return np.asarray(weights <= LIGHT * weights.max(), np.bool_)


def refuse_few_tokens(
    clients: Iterable[ClientDataset],
    layout: Layout,
    training_of: Callable[[str], TrainingSettings],
    seed: int,
    rounds: int,
) -> None:
    """Check all uploads of a run before its first round.

    Args:
        clients: The clients.
        layout: Names and shapes of the values that are sent.
        training_of: A client's name → its training settings.
        seed: The run's seed.
        rounds: Number of rounds.

    Raises:
        RunError: Clients have a round whose upload is made from too few tokens; the message names them all.
    """
    found = {}
    for client in clients:
        training = training_of(client.name)
        in_each_round = (few_tokens(client, layout, training, seed, number) for number in range(1, rounds + 1))
        few = next(filter(None, in_each_round), None)
        if few:
            found[client.name] = few
    if found:
        raise RunError(too_few(found))


def too_few(found: dict[str, Few]) -> str:
    """Return the message about clients, by name, whose uploads are made from too few tokens, with the ways out."""
    needed = max(few.needed for few in found.values())
    count = "is one" if len(found) == 1 else f"are {len(found)}"
    names = "; ".join(f"{name}, {few}" for name, few in found.items())
    return (
        f"privacy.few_tokens: an upload that depends on fewer than {needed} different tokens (twice the rank of "
        f"what is sent) can reveal them, and there {count}: {names}. Use more data, more steps a round or a "
        f"lower adapter.rank, leave such clients out, {WAY_OUT.format('few_tokens')}"
    )


def small_components(summary: Summary) -> str:
    """Return the message about a summary's components under the floor; empty if there are none."""
    small = summary.counts[summary.counts < FLOOR]
    if not len(small):
        return ""
    return (
        f"privacy.small_components: {len(small)} of {len(summary.counts)} means and variances in the summary "
        f"cover fewer than {FLOOR} examples, one of them {int(np.min(small))}, and can reveal them; set "
        f"method.summary = 'projected' if the method has this option, {WAY_OUT.format('small_components')}"
    )
