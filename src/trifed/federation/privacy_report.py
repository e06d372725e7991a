"""The price of privacy: the ε that a run's clients have spent, or will spend, and the noise in what they send.

The spent ε is read from the ledgers in a run's folder; what a run will cost follows from its settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.federation.run_folder import PRIVACY
from trifed.methods.personalization import EXAMPLES_OF_NAMES
from trifed.privacy import (
    Book,
    Spent,
    facts_of,
    noise_multiplier,
    promised,
    read_ledger,
    spent,
    steps_multiplier,
)
from trifed.privacy.ledger import FILE

QUIET = 1.0
"""Largest ratio at which no remedy is named: the noise is as long as the change that it hides."""


class Account(NamedTuple):
    """One client's ledger in one run. `run`: name of the run's folder, or of the baseline's."""

    run: str
    book: Book

    @property
    def spent(self) -> list[Spent]:
        """Spent ε by relation of data sets."""
        return spent(self.book.entries, self.book.budget)


def accounts_in(folder: Path) -> list[Account]:
    """Return all ledgers under a folder: a run's, a site's of one run, or a site's with several runs.

    Raises:
        RunError: A ledger is damaged.
    """
    accounts = []
    for file in sorted(folder.rglob(FILE)):
        parts = file.relative_to(folder).parts
        if PRIVACY in parts:
            run = (folder.absolute().name, *parts[: parts.index(PRIVACY)])[-1]
            accounts.append(Account(run, read_ledger(file)))
    return accounts


def most_spent(folder: Path) -> dict[str, Any] | None:
    """Return the largest ε of any client by relation, for a simulated run's summary.json; None without ledgers."""
    files = sorted((folder / PRIVACY).glob(f"*/{FILE}"))
    if not files:
        return None
    lines = [spent(book.entries, book.budget) for book in map(read_ledger, files)]
    worst = [max(line, key=lambda found: found.epsilon) for line in zip(*lines, strict=True)]
    return {
        "spent": facts_of(worst),
        "of": "the client that spent most",
        "noise": "from the run's seed: as it would be between sites, but it protects nobody who knows the seed",
    }


def promise(config: RunConfig) -> list[Spent]:
    """Return the ε that a run costs a client that takes part in every round.

    Raises:
        RunError: The run has no [privacy].
    """
    if not config.privacy.on:
        raise RunError(f"{config.name}: this run has no [privacy]; `trifed settings` shows it")
    method = config.composed_method()
    return promised(
        config.privacy,
        config.rounds,
        config.training.steps,
        summarises=method.summarise is not None,
        uploads=any(map(method.sends, EXAMPLES_OF_NAMES)),
        clients=config.sealing.noise_clients,
    )


def of_updates(multiplier: float, values: int, clients: int, shared_by: int = 1) -> float:
    """Return the length of the noise on a mean of updates, in units of the clipping norm.

    Each number of an update has noise of z · clip, or in a sealed run a share of it, z · clip / √shared_by. In a
    mean of updates it is divided by √clients; the noise on a vector of n numbers is √n times as long.

    Args:
        multiplier: z.
        values: Numbers in an update.
        clients: Updates in the mean.
        shared_by: Clients whose noise together has the multiplier z.
    """
    return multiplier * math.sqrt(values / (clients * shared_by))


def of_steps(multiplier: float, values: int, examples: float) -> float:
    """Return the length of the noise on a training step of DP-SGD, in units of the longest sum of gradients.

    Args:
        multiplier: z.
        values: Numbers in a gradient.
        examples: Gradients in the sum.
    """
    return multiplier * math.sqrt(values) / max(examples, 1.0)


def noise_to_signal(config: RunConfig, sent: int, trained: int, sizes: list[int]) -> Iterator[str]:
    """Yield a sentence for each kind of noise in a run's training and updates.

    Args:
        config: Settings of the run.
        sent: Numbers that an update has.
        trained: Numbers that are trained.
        sizes: Training examples of each client.
    """
    update, steps = config.privacy.update, config.privacy.training
    if update and sent:
        clients = max(1, round(config.participation * len(sizes)))
        shared_by = config.sealing.noise_clients
        z = noise_multiplier(update.epsilon, update.delta, config.rounds, in_sums=shared_by > 1)
        larger = ", a larger sealing.at_least" if config.sealing.on and clients > shared_by + 1 else ""
        yield _sentence(
            f"privacy.update: the noise on a mean of {clients} clients",
            of_updates(z, sent, clients, shared_by),
            "change one of them may send",
            f"more clients, fewer rounds, fewer numbers (adapter.rank){larger}",
        )
    if steps and config.training.steps:
        z = steps_multiplier(steps.epsilon, steps.delta, steps.rate, config.rounds * config.training.steps)
        sampled = steps.rate * sorted(sizes)[len(sizes) // 2]
        yield _sentence(
            f"privacy.training: the noise on a step of some {sampled:.0f} examples",
            of_steps(z, trained, sampled),
            "sum of their gradients",
            "more examples, a larger rate, fewer steps, fewer numbers (adapter.rank)",
        )


def _sentence(noise: str, times: float, longest: str, remedies: str) -> str:
    ratio = f"{times:.0f}" if times >= 10 else f"{times:.1f}"
    advice = f"; {remedies} or a larger epsilon make it quieter; separate training sends nothing and needs none"
    return f"{noise} is about {ratio} times as long as the longest {longest}{advice if times > QUIET else ''}"
