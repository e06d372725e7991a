"""The size of an audit: a small plan that takes minutes, and a full one that takes hours."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trifed.common.errors import ConfigError, nearest
from trifed.methods import METHODS
from trifed.methods.personalization import EXAMPLES_OF_NAMES


@dataclass(frozen=True)
class Plan:
    """The size of an audit.

    Attributes:
        rounds: Rounds of training before a configuration is attacked.
        batches: The attacked batch sizes.
        trials: Batches of each size.
        matched: Number of the trials that are attacked by gradient matching.
        match_up_to: The largest batch size that is attacked by gradient matching.
        iterations: Steps of gradient matching for a batch of texts.
        clients: Number of clients that are attacked by membership inference.
        members: Largest number of members, and of other examples, of each of these clients.
        observed: Rounds in a row from which membership is inferred.
        sums: True to reconstruct from sums of clients in an open run too; in a sealed one it is always done.
        controls: Methods that are attacked beside the user's own.
        seed: Seed of the choice of attacked examples.
        announced: True if the expected duration is reported first.
    """

    rounds: int = 2
    batches: tuple[int, ...] = (1, 8)
    trials: int = 6
    matched: int = 1
    match_up_to: int = 1
    iterations: int = 60
    clients: int = 3
    members: int = 24
    observed: int = 2
    sums: bool = False
    controls: tuple[str, ...] = ("fedavg-full", "fedavg-lora")
    seed: int = 0
    announced: bool = False

    def guessed_trials(self, batch: int, trials: int) -> list[int]:
        """Return the numbers of trials on which guessing is scored: all, and the matched ones if these are fewer.

        The matched trials can be easier to guess than all of them.
        """
        matched = min(self.matched, trials) if batch <= self.match_up_to else 0
        return [trials, matched] if 0 < matched < trials else [trials]


SMALL = Plan()
FULL = replace(
    SMALL, rounds=5, batches=(1, 2, 4, 8, 16, 32), trials=16, matched=8, match_up_to=8, iterations=300, clients=8,
    members=64, observed=3, sums=True, announced=True,
    controls=("fedavg-full", "fedavg-lora", "ffa-lora", "fedsa-lora", "ce-lora", "own-prior"),
)  # fmt: skip


def make_plan(
    full: bool,
    batches: list[int] | None,
    trials: int | None,
    rounds: int | None,
    controls: list[str] | None,
) -> Plan:
    """Return the small or the full plan with the user's changes.

    Raises:
        ConfigError: A control is not a method, or sends nothing in a round.
    """
    plan = FULL if full else SMALL
    for name in controls or []:
        if name not in METHODS:
            raise ConfigError(
                [f"--control: got '{name}', expected one of {', '.join(METHODS)}{nearest(name, METHODS)}"]
            )
        if not any(map(METHODS[name].sends, EXAMPLES_OF_NAMES)):
            raise ConfigError([f"--control: {name} sends nothing in a round, so there is nothing to attack"])
    return replace(
        plan,
        batches=tuple(sorted(set(batches))) if batches else plan.batches,
        trials=trials or plan.trials,
        matched=min(plan.matched, trials or plan.trials),
        rounds=rounds or plan.rounds,
        controls=tuple(dict.fromkeys([*plan.controls, *(controls or [])])),
    )
