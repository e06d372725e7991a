"""The privacy that a run's clients have spent, by the ledgers in its folder, or will spend, by its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from trifed.common.errors import RunError
from trifed.config.run import RunConfig
from trifed.federation.run_folder import PRIVACY
from trifed.methods.personalization import EXAMPLES_OF_NAMES
from trifed.privacy import Book, Spent, facts_of, promised, read_ledger, spent
from trifed.privacy.ledger import FILE


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
        RunError: a ledger is damaged.
    """
    found = sorted(file for file in folder.rglob(FILE) if PRIVACY in file.relative_to(folder).parts)
    return [Account(_run_of(folder, file), read_ledger(file)) for file in found]


def _run_of(folder: Path, file: Path) -> str:
    parts = file.relative_to(folder).parts
    inner = parts[: parts.index(PRIVACY)]
    return inner[-1] if inner else folder.absolute().name


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
        RunError: the run has no [privacy].
    """
    if not config.privacy.on:
        raise RunError(f"{config.name}: this run has no [privacy]; `trifed settings` shows it")
    method = config.composed_method()
    uploads = any(map(method.sends, EXAMPLES_OF_NAMES))
    return promised(
        config.privacy,
        config.rounds,
        config.training.steps,
        summarises=method.summarise is not None,
        uploads=uploads,
    )
