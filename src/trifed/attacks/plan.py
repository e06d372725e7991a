"""How much an audit does: a small one for an answer in minutes, and a full one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trifed.common.errors import ConfigError, nearest
from trifed.methods import METHODS
from trifed.methods.personalization import EXAMPLES_OF_NAMES


@dataclass(frozen=True)
class Plan:
    """`rounds`: of warm-up; `batches`: that are attacked; `trials`: of each; `matched`: of these by matching, for
    batches up to `match_up_to`, in `iterations` steps; `clients`: whose members are looked for, up to `members`
    examples of each; `controls`: methods beside the user's; `seed`: of the examples that are attacked;
    `announced`: is it said first how long it takes?
    """

    rounds: int = 2
    batches: tuple[int, ...] = (1, 8)
    trials: int = 6
    matched: int = 1
    match_up_to: int = 1
    iterations: int = 60
    clients: int = 3
    members: int = 24
    controls: tuple[str, ...] = ("fedavg-full", "fedavg-lora")
    seed: int = 0
    announced: bool = False

    def guessed(self, batch: int, trials: int) -> list[int]:
        """Of how many trials a guesser is scored: of all, and of those that are matched, which may be easier."""
        matched = min(self.matched, trials) if batch <= self.match_up_to else 0
        return [trials, matched] if 0 < matched < trials else [trials]


SMALL = Plan()
FULL = replace(
    SMALL, rounds=5, batches=(1, 2, 4, 8, 16, 32), trials=16, matched=8, match_up_to=8, iterations=300, clients=8,
    members=64, announced=True,
    controls=("fedavg-full", "fedavg-lora", "ffa-lora", "fedsa-lora", "ce-lora", "own-prior"),
)  # fmt: skip


def made(
    full: bool,
    batches: list[int] | None,
    trials: int | None,
    rounds: int | None,
    controls: list[str] | None,
) -> Plan:
    """The small or the full plan with what the user wants otherwise.

    Raises:
        ConfigError: a control is no method, or one that sends nothing.
    """
    plan = FULL if full else SMALL
    for name in controls or []:
        if name not in METHODS:
            raise ConfigError(
                [f"--control: got '{name}', expected one of {', '.join(METHODS)}{nearest(name, METHODS)}"]
            )
    silent = [name for name in controls or [] if not any(map(METHODS[name].sends, EXAMPLES_OF_NAMES))]
    if silent:
        raise ConfigError([f"--control: {silent[0]} sends nothing in a round, so there is nothing to attack"])
    return replace(
        plan,
        batches=tuple(sorted(set(batches))) if batches else plan.batches,
        trials=trials or plan.trials,
        matched=min(plan.matched, trials or plan.trials),
        rounds=rounds or plan.rounds,
        controls=tuple(dict.fromkeys([*plan.controls, *(controls or [])])),
    )
