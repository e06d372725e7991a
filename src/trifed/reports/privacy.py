"""What was spent of a privacy budget, for people: every ε with the two data sets between which it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trifed.common.errors import RunError
from trifed.config.run import make_config, read_toml
from trifed.federation.privacy_report import Account, promise
from trifed.privacy import Spent
from trifed.reports.tables import Column, Grid

COLUMNS = (
    Column("relation", "data sets that differ by"),
    Column("covers", "covers"),
    Column("releases", "releases", "count"),
    Column("epsilon", "ε"),
    Column("delta", "δ"),
)


def privacy_grid(accounts: Sequence[Account]) -> Grid:
    """Ledgers as a table: each client by relation."""
    several = len({account.run for account in accounts}) > 1
    rows: list[list[Any]] = [
        [*([account.run] if several else []), account.book.client, *_row(line)]
        for account in accounts
        for line in account.spent
    ]
    runs = (Column("run", "run"),) if several else ()
    return Grid("Spent", (*runs, Column("client", "client"), *COLUMNS), rows)


def promise_grid(folder: Path) -> Grid:
    """What a run that keeps no ledger itself costs its clients at most.

    Raises:
        RunError: no ledger and no run there, or one without [privacy].
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise RunError(f"{folder}: no ledger and no run there; give the folder of a run, or a site's folder")
    lines = promise(make_config(read_toml(path), str(path)))
    return Grid("What all rounds cost a client; ledgers are at the sites", COLUMNS, [_row(line) for line in lines])


def _row(line: Spent) -> list[Any]:
    return [line.relation, line.covers, line.releases, shown(line.epsilon), f"{line.delta:g}"]


def shown(epsilon: float | None) -> str:
    """ε with two decimals; ∞ where something had no noise."""
    return "∞" if epsilon is None or math.isinf(epsilon) else f"{epsilon:.2f}"


def remarks(folder: Path, accounts: Sequence[Account]) -> Iterable[str]:
    """What has to be known beside the numbers."""
    if any(math.isinf(line.epsilon) for account in accounts for line in account.spent):
        yield "∞: something that it covers went out without noise."
    if any(account.book.lost for account in accounts):
        yield "Entries of a ledger were lost: every round before counts as a release."
    if accounts and (folder / "config.toml").is_file():
        yield (
            "A simulated run draws its noise from its seed: this is what the run would cost between sites; "
            "whoever knows the seed can take its noise off."
        )
    if len({account.run for account in accounts}) > 1:
        yield "Runs on the same data add up; each ledger is of one run."


def sentences(method: str, privacy: dict[str, Any] | None) -> list[str]:
    """What summary.json says a method has spent, one sentence a relation."""
    lines = privacy.get("spent", privacy.get("promised", [])) if privacy else []
    verb = "spent" if privacy and "spent" in privacy else "may spend"
    return [
        f"{method} {verb} ε = {shown(line['epsilon'])} at δ = {line['delta']:g} on {line['covers']}, between data "
        f"sets that differ by {line['relation']}."
        for line in lines
        if line["releases"]
    ]
