"""The ratio of noise to signal under [privacy], reported before training starts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trifed.config.run import RunConfig
from trifed.privacy import noise_multiplier, steps_multiplier

QUIET = 1.0
"""Largest ratio at which no remedy is named: the noise is as long as the change that it hides."""


def of_updates(multiplier: float, values: int, clients: int) -> float:
    """Return the length of the noise on a mean of updates, in units of the clipping norm.

    A number has noise of z · clip, a mean of updates that over √clients, and a vector of n numbers √n times that.

    Args:
        multiplier: z.
        values: numbers in an update.
        clients: updates in the mean.
    """
    return multiplier * math.sqrt(values / clients)


def of_steps(multiplier: float, values: int, examples: float) -> float:
    """Return the length of the noise on a training step of DP-SGD, in units of the longest sum of gradients.

    Args:
        multiplier: z.
        values: numbers in a gradient.
        examples: gradients in the sum.
    """
    return multiplier * math.sqrt(values) / max(examples, 1.0)


def noise_to_signal(config: RunConfig, sent: int, trained: int, sizes: list[int]) -> Iterator[str]:
    """Yield a sentence for each kind of noise in a run's training and updates.

    Args:
        config: settings of the run.
        sent: numbers that an update has.
        trained: numbers that are trained.
        sizes: training examples of each client.
    """
    update, steps = config.privacy.update, config.privacy.training
    if update and sent:
        clients = max(1, round(config.participation * len(sizes)))
        z = noise_multiplier(update.epsilon, update.delta, config.rounds)
        times = of_updates(z, sent, clients)
        what, longest = f"privacy.update: the noise on a mean of {clients} clients", "change one of them may send"
        yield _sentence(what, times, longest, "more clients, fewer rounds, fewer numbers (adapter.rank)")
    if steps and config.training.steps:
        z = steps_multiplier(steps.epsilon, steps.delta, steps.rate, config.rounds * config.training.steps)
        taken = steps.rate * sorted(sizes)[len(sizes) // 2]
        times = of_steps(z, trained, taken)
        what = f"privacy.training: the noise on a step of some {taken:.0f} examples"
        remedies = "more examples, a larger rate, fewer steps, fewer numbers (adapter.rank)"
        yield _sentence(what, times, "sum of their gradients", remedies)


def _sentence(what: str, times: float, longest: str, remedies: str) -> str:
    much = f"{times:.0f}" if times >= 10 else f"{times:.1f}"
    advice = (
        f"; {remedies} or a larger epsilon make it quieter; who trains alone and sends nothing needs none"
        if times > QUIET
        else ""
    )
    return f"{what} is about {much} times as long as the longest {longest}{advice}"
