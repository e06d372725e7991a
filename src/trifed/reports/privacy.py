"""Tables of what was spent of a privacy budget: every ε with the two data sets between which it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trifed.common.errors import RunError
from trifed.config.run import make_config
from trifed.config.toml_files import read_toml
from trifed.federation.privacy_report import Account, promise
from trifed.reports.tables import NAME, Column, Table

PRIVACY_COLUMNS = (
    Column("relation", "data sets that differ by"),
    Column("covers", "covers"),
    Column("releases", "releases", "count"),
    Column("epsilon", "ε"),
    Column("delta", "δ"),
)


def privacy_row(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of ε and δ; ε is ∞ where a release had no noise."""
    epsilon = line["epsilon"]
    shown = "∞" if epsilon is None or math.isinf(epsilon) else f"{epsilon:.2f}"
    return {**line, "epsilon": shown, "delta": f"{line['delta']:g}"}


def privacy_table(accounts: Sequence[Account]) -> Table:
    """Return ledgers as a table, one row for each client and relation."""
    runs = [Column("run", "run", NAME)] if len({account.run for account in accounts}) > 1 else []
    columns = [*runs, Column("client", "client", NAME), *PRIVACY_COLUMNS]
    rows = [
        {**privacy_row(line._asdict()), "run": account.run, "client": account.book.client}
        for account in accounts
        for line in account.spent
    ]
    return Table("Spent", columns, rows)


def promise_table(folder: Path) -> Table:
    """Return the most that a run without a ledger of its own costs a client.

    Raises:
        RunError: There is no ledger and no run, or the run has no [privacy].
    """
    path = folder / "config.toml"
    if not path.is_file():
        raise RunError(f"{folder}: no ledger and no run there; give the folder of a run, or a site's folder")
    rows = [privacy_row(line._asdict()) for line in promise(make_config(read_toml(path), str(path)))]
    return Table("What all rounds cost a client; ledgers are at the sites", PRIVACY_COLUMNS, rows)


def remarks(folder: Path, accounts: Sequence[Account]) -> Iterable[str]:
    """Yield what a reader has to know beside the numbers."""
    if any(math.isinf(line.epsilon) for account in accounts for line in account.spent):
        yield "∞: something that it covers was sent without noise."
    if any(account.book.lost for account in accounts):
        yield "Entries of a ledger were lost: every round before counts as a release."
    shared = max((entry.clients for account in accounts for entry in account.book.entries), default=1)
    if shared > 1:
        yield (
            f"Updates were sent in sealed sums: their ε is that of a sum, and holds while {shared} of its clients "
            "(this one is one of them) keep their noise to themselves."
        )
    if accounts and (folder / "config.toml").is_file():
        yield (
            "A simulated run draws its noise from its seed, so this is its cost between sites; "
            "whoever knows the seed can remove the noise."
        )
    if len({account.run for account in accounts}) > 1:
        yield "Runs on the same data add up; each ledger is of one run."
