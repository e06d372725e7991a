"""`[sealing]`: the server sees only sums of several clients' updates; checks of settings that do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from trifed.common.strict_settings import StrictSettings
from trifed.data.columns import spelling
from trifed.methods import METHODS, compose
from trifed.methods.sealed import cannot_seal

if TYPE_CHECKING:
    from trifed.config.run import RunConfig


class SealingSettings(StrictSettings):
    """Sealed sums: the server sees the sum of several clients' uploads, and no single upload."""

    on: bool = Field(
        False,
        description="Seal the clients' uploads, so that the server sees only sums of them. A round then has two "
        "exchanges, and all clients of a sum weigh the same. Between sites, trifed flower init turns it on if "
        "the run's file does not set it and the run can be sealed.",
    )
    at_least: int = Field(
        3,
        ge=3,
        description="Fewest clients of a sum, a client itself included. With fewer a round has no sum: nothing is "
        "sent, and each client trains on by itself.",
    )
    levels: int = Field(
        1,
        ge=1,
        le=7,
        description="Levels L on each side of 0 to which a change is rounded before it is summed. A number takes "
        "the bits of 2·n·L + 1 values, n being the number of clients of the sum.",
    )

    @property
    def noise_clients(self) -> int:
        """Clients whose noise on updates together meets ε: all of the smallest sum but one, or 1 if not sealed.

        Each site knows its own noise, and the server may be run by one of the sites.
        """
        return self.at_least - 1 if self.on else 1


def sealing_problems(config: RunConfig) -> Iterator[str]:
    """Yield a message for each setting of a run that cannot be combined with `[sealing]`."""
    if not config.sealing.on:
        return
    aggregation, name = config.aggregation, config.method.name
    open_method = compose(METHODS[name], config.personalization, aggregation)
    if reason := cannot_seal(open_method):
        yield (
            f"sealing: '{name}' {reason}; choose a method that can be sealed, such as own-prior or fedavg-lora, "
            "or leave [sealing] out"
        )
    for setting, usual in (("rule", "mean"), ("screen", "none")):
        got = getattr(aggregation, setting)
        if got != usual:
            yield (
                f"aggregation.{setting}: '{got}' compares single uploads, and in a sealed run the server sees "
                f"none; set it to '{usual}', or leave [sealing] out"
            )
    few = [group for group in aggregation.members if len(group) < config.sealing.at_least]
    if aggregation.groups == "given" and few:
        yield (
            f"aggregation.members: got a list of {len(few[0])} ({', '.join(few[0])}), but a sum needs "
            f"{config.sealing.at_least} clients (sealing.at_least); merge this list with another one, or "
            "remove its clients from aggregation.members"
        )
    yield from _weight_problems(config)


LEAST_WEIGHT = 0.05
"""Least weight of a label in a sealed run, as a share of the largest one."""


def _weight_problems(config: RunConfig) -> Iterator[str]:
    """Yield a message if clients could add almost nothing to a sum because their labels weigh little."""
    weights, labels = config.training.class_weights, config.data.labels
    if not isinstance(weights, dict):
        return
    named = set(map(spelling, weights))
    others = labels is None or any(spelling(label) not in named for label in labels)
    counted = [*weights.values(), *([1.0] if others else [])]
    if min(counted) < LEAST_WEIGHT * max(counted):
        yield (
            f"training.class_weights: got weights from {min(counted):g} to {max(counted):g} (a label without one "
            f"counts 1), and in a sealed run the smallest must be at least {LEAST_WEIGHT:g} of the largest. "
            "Otherwise a sum could show the update of the only client that holds a label; choose weights that "
            "differ less, or leave [sealing] out"
        )


def clients_of_round(config: RunConfig, clients: int) -> int:
    """Return how many of a run's `clients` are drawn for a round."""
    return max(1, round(config.participation * clients))


def sealing_notes(config: RunConfig, clients: int | None = None) -> Iterator[str]:
    """Yield a sentence for each effect of `[sealing]` that is to be known when a run starts.

    Args:
        config: The settings.
        clients: Number of clients, if it is known.
    """
    sealing, aggregation = config.sealing, config.aggregation
    if not sealing.on:
        return
    if clients is not None and clients < sealing.at_least:
        yield (
            f"sealing.at_least: a sum needs {sealing.at_least} clients, and there are {clients}; no round will "
            "have a sum, and nothing is shared"
        )
    elif clients is not None and (drawn := clients_of_round(config, clients)) < sealing.at_least:
        yield (
            f"participation: {drawn} of {clients} clients take part in a round, and a sum needs "
            f"{sealing.at_least} (sealing.at_least); no round will have a sum, and nothing is shared"
        )
    if aggregation.groups == "agreement" and not config.privacy.summary:
        yield (
            "aggregation.groups: 'agreement' needs data summaries, which leave a client of a sealed run only with "
            "noise; all clients are one group (set privacy.summary for groups)"
        )
    yield from _noise_notes(config, clients)
    if aggregation.weights == "examples" or aggregation.weights is None:
        yield "aggregation.weights: in a sealed run all clients of a sum weigh the same"
    usual = type(aggregation)()
    for name in ("norm_bound", "most_examples"):
        if getattr(aggregation, name) != getattr(usual, name):
            yield f"aggregation.{name}: has no effect in a sealed run, where the server sees no single update"


def _noise_notes(config: RunConfig, clients: int | None) -> Iterator[str]:
    """Yield a sentence for each effect of noise in a sealed run."""
    sealing, privacy = config.sealing, config.privacy
    secret = sealing.noise_clients
    if (privacy.update or privacy.training) and config.aggregation.weights == "label-rows":
        yield (
            "aggregation.weights: 'label-rows' needs the number of clients that hold each label, which has no "
            "noise; with privacy.update or privacy.training all clients of a sum send all rows of the head"
        )
    if not privacy.update:
        return
    if sealing.levels != type(sealing)().levels:
        yield "sealing.levels: has no effect with privacy.update, which needs finer steps"
    usual = clients and clients_of_round(config, clients)
    more = (
        f" With {usual} clients in a sum, at_least = {usual} needs less noise."
        if usual and usual > secret + 1
        else ""
    )
    yield (
        f"privacy.update: each client adds a share of the noise, so that {secret} of them together "
        f"(sealing.at_least − 1) have all of it. The epsilon holds while at least {secret} clients of every sum "
        f"keep their own noise to themselves.{more}"
    )
