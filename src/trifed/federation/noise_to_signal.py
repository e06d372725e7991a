"""How loud noise will be, said before a run: whoever waits for the end learns it too late."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trifed.config.run import RunConfig
from trifed.privacy import noise_multiplier, steps_multiplier

QUIET = 1.0
"""Noise that is no longer than what it hides."""


def of_updates(multiplier: float, values: int, clients: int) -> float:
    """How long noise on the mean of `clients` updates of `values` numbers is, in lengths of one that is clipped.

    Each number has noise of z · clip, their mean that over √clients, and a vector of n such numbers √n times that.
    """
    return multiplier * math.sqrt(values / clients)


def of_steps(multiplier: float, values: int, examples: float) -> float:
    """The same of a step on `examples` clipped gradients of `values` numbers, in lengths of their longest sum."""
    return multiplier * math.sqrt(values) / max(examples, 1.0)


def noise_to_signal(config: RunConfig, sent: int, trained: int, sizes: list[int]) -> Iterator[str]:
    """A sentence for each kind of noise that a run puts on what is learned; nothing without.

    `sent`, `trained`: numbers that travel, and that train; `sizes`: of the clients' training data.
    """
    update, steps = config.privacy.update, config.privacy.training
    if update and sent:
        clients = max(1, round(config.participation * len(sizes)))
        z = noise_multiplier(update.epsilon, update.delta, config.rounds)
        times = of_updates(z, sent, clients)
        what, longest = f"privacy.update: the noise on a mean of {clients} clients", "change one of them may send"
        yield _said(what, times, longest, "more clients, fewer rounds, fewer numbers (adapter.rank)")
    if steps and config.training.steps:
        z = steps_multiplier(steps.epsilon, steps.delta, steps.rate, config.rounds * config.training.steps)
        taken = steps.rate * sorted(sizes)[len(sizes) // 2]
        times = of_steps(z, trained, taken)
        what = f"privacy.training: the noise on a step of some {taken:.0f} examples"
        remedies = "more examples, a larger rate, fewer steps, fewer numbers (adapter.rank)"
        yield _said(what, times, "sum of their gradients", remedies)


def _said(what: str, times: float, longest: str, remedies: str) -> str:
    much = f"{times:.0f}" if times >= 10 else f"{times:.1f}"
    advice = (
        f"; {remedies} or a larger epsilon make it quieter; who trains alone and sends nothing needs none"
        if times > QUIET
        else ""
    )
    return f"{what} is about {much} times as long as the longest {longest}{advice}"
