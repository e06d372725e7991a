"""`trifed privacy`: the privacy budget that a run has spent, by client."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from trifed.cli.flags import Run


def privacy_command(
    folder: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print every entry as JSON.")] = False,
) -> None:
    """The privacy budget that a run has spent, from its ledgers.

    RUN is the folder of a simulated run (all clients' ledgers), a site's folder
    (its own ledgers, of one run or of all), or a run's folder at the server of a
    run between sites. The server has no ledger; it shows the cost for a client
    that takes part in every round.

    An ε holds between two data sets that differ. Here they differ by one training
    example of the client, or by all of its updates.

    [bold]Examples[/bold]

      trifed privacy runs/tickets
    \b
      trifed privacy trifed-node --json
    """
    # Imported late: --help should not wait for torch.
    from trifed.federation.privacy_report import accounts_in
    from trifed.privacy.ledger import as_json as book_as_json
    from trifed.reports.privacy import privacy_table, promise_table, remarks
    from trifed.reports.tables import to_terminal

    accounts = accounts_in(folder)
    if as_json:
        typer.echo(json.dumps([{"run": a.run, **book_as_json(a.book)} for a in accounts], indent=2))
        return
    console = Console()
    console.print(to_terminal(privacy_table(accounts) if accounts else promise_table(folder)))
    for remark in remarks(folder, accounts):
        console.print(remark)
