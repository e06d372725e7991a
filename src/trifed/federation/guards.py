"""What a client looks at before anything leaves it: does it stand on so little that it shows single examples?

The update of a core C (r, r), or of a factor A or B, of a layer that has read the tokens x_1 … x_t is a sum of t
terms, each with A x_s in it. With t < r these span a space that the update gives away, and every token of the
vocabulary can be tried on it: the span attack of Petrov et al., "DAGER: Exact Gradient Inversion for Large
Language Models", NeurIPS 2024, arXiv 2405.15586. From r tokens on everything is in the span; twice as many are
asked for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from trifed.common.errors import RunError
from trifed.config.settings import TrainingSettings
from trifed.federation.client_update import TRAINING, ClientDataset
from trifed.federation.training import rows_of_round, seeded
from trifed.methods.base import is_core, is_factor
from trifed.methods.packing import Layout
from trifed.similarity import Summary

FLOOR = 20
"""Examples that a mean and a variance have to stand on."""
WAY_OUT = 'or allow it: privacy.{} = "warn", or "allow" to hear nothing of it'


@dataclass(frozen=True)
class Few:
    """A round's upload that stands on too little: `tokens` different ones, of `examples`, where `needed` are."""

    round: int
    tokens: int
    examples: int
    needed: int

    def __str__(self) -> str:
        return f"{self.tokens} different tokens of {_examples(self.examples)} in round {self.round}"


def tokens_needed(layout: Layout, layers: str = "") -> int:
    """Different tokens that an upload has to stand for: twice the largest rank of a core or factor in it.

    `layers`: how the names of those layers begin that are asked about. 0 where there is none. No number of tokens
    hides what the whole model shows, for an embedding's rows that changed name the tokens. Nothing is promised
    there.
    """
    sent = [shape for name, shape in layout if name.startswith(layers) and (is_core(name) or is_factor(name))]
    return 2 * max(map(min, sent), default=0)


def few_tokens(
    client: ClientDataset, layout: Layout, training: TrainingSettings, seed: int, number: int
) -> Few | None:
    """What is too few in a client's round `number`; None where it is enough, or where it has nothing to send."""
    data = client.train
    parts = data.inputs(0) if len(data) else {}
    seen: dict[str, set[Hashable]] = {layers: set() for layers in parts if tokens_needed(layout, layers)}
    rows: set[int] = set()
    for batch in rows_of_round(data.lengths, training, seeded(seed, TRAINING, number, client.index)):
        for row in set(batch.tolist()) - rows:
            read = data.inputs(row)
            for layers, known in seen.items():
                known |= read[layers]
        rows.update(batch.tolist())
        if all(len(known) >= tokens_needed(layout, layers) for layers, known in seen.items()):
            return None
    short = ((len(known), tokens_needed(layout, layers)) for layers, known in seen.items())
    return next((Few(number, found, len(rows), needed) for found, needed in short if found < needed), None)


def refuse_few_tokens(
    clients: Iterable[ClientDataset], layout: Layout, training: TrainingSettings, seed: int, rounds: int
) -> None:
    """Before the first round: would one of the clients' uploads stand on too little, in whatever round?

    Raises:
        RunError: with all of them.
    """
    found = {}
    for client in clients:
        every = (few_tokens(client, layout, training, seed, number) for number in range(1, rounds + 1))
        few = next((few for few in every if few), None)
        if few:
            found[client.name] = few
    if found:
        raise RunError(too_few(found))


def too_few(found: dict[str, Few]) -> str:
    """Whose uploads stand on too little, why that matters, and the ways out."""
    needed = max(few.needed for few in found.values())
    count = "is one" if len(found) == 1 else f"are {len(found)}"
    names = "; ".join(f"{name}, {few}" for name, few in found.items())
    return (
        f"privacy.few_tokens: an upload that stands for fewer than {needed} different tokens (twice the rank of "
        f"what is sent) can give them away, and there {count}: {names}. Use more data, more steps a round or a "
        f"lower adapter.rank, leave such clients out, {WAY_OUT.format('few_tokens')}"
    )


def small_components(summary: Summary) -> str:
    """What is against a summary: components under the floor; empty where there are none."""
    small = summary.counts[summary.counts < FLOOR]
    if not len(small):
        return ""
    return (
        f"privacy.small_components: {len(small)} of {len(summary.counts)} means and variances in the summary "
        f"stand on fewer than {FLOOR} examples, one of them on {int(np.min(small))}, and can show them; let the "
        f"method merge them, {WAY_OUT.format('small_components')}"
    )


def _examples(count: int) -> str:
    return f"{count} example{'' if count == 1 else 's'}"
