"""Training that diverges: a loss that is no number, or that has risen far above what it was at first."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

TIMES = 10.0
"""A loss has diverged if it is so many times the first one."""
LEAST = 5.0
"""A loss in nats below this is not called divergence: guessing among 150 labels has it."""
MOST = 30.0
"""A loss in nats that only diverged training has: guessing among a million classes or tokens has 14."""


@dataclass
class Divergence:
    """The losses of a run's clients, as far as they are known.

    Attributes:
        first: First training loss of each client, in nats.
        told: Clients whose divergence was found.
    """

    first: dict[str, float] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def begins(self, client: str, loss: float, steps: int) -> float | None:
        """Return a client's first loss if its training is now found to diverge, and otherwise None.

        Args:
            client: The client.
            loss: Its mean loss of a round, in nats. NaN is a loss only if every step may have one.
            steps: The steps of the round; 0 if the client does not tell them.
        """
        if not steps or client in self.told:
            return None
        first = self.first.setdefault(client, loss)
        if math.isfinite(loss) and loss <= MOST and not loss > max(LEAST, TIMES * first):
            return None
        self.told.add(client)
        return first
