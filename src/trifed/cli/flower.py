"""`trifed flower`: folders from which sites run together by Flower."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trifed.common.errors import RunError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from trifed.config.run import RunConfig
    from trifed.deployment.status import RunStatus
    from trifed.federation.run_folder import RunFolder

HELP = """A run between sites, by Flower: a SuperLink at the server, a SuperNode at every site.

`init` at the server, `join` at each site; docs/deployment.md walks through both. Needs the extra:
pip install 'trifed\\[flower]'.
"""
INIT_HELP = """Write the server's folder: the run as a Flower app, TLS certificates, and scripts.

[bold]Examples[/bold]

  trifed flower init server --run run.toml --host federation.example.org
\b
  server/start.sh
"""
JOIN_HELP = """Write a site's folder: its own key, its settings, and a script that starts its node.

[bold]Examples[/bold]

  trifed flower join site --name berlin --superlink federation.example.org:8443 --ca ca.pem --data tickets.csv
"""
STATUS_HELP = """Which sites take part in a run, what each has sent, and who was left out or refused, and why.

[bold]Example[/bold]: trifed flower status server/runs/tickets
"""
WITHDRAW_HELP = """A site leaves for good: what is its own at the server is deleted, and nobody gets more of it.

At the site, with its folder: its node tells the server when it is asked next.

At the server, with a run's folder and --client: at once; before the next round where the run is under way.

[bold]Examples[/bold]

  trifed flower withdraw site
\b
  trifed flower withdraw server/runs/tickets --client berlin
"""
NEEDED = ("flwr", "cryptography")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help=HELP, no_args_is_help=True)
    group.command("init", help=INIT_HELP)(init_command)
    group.command("join", help=JOIN_HELP)(join_command)
    group.command("status", help=STATUS_HELP)(status_command)
    group.command("withdraw", help=WITHDRAW_HELP)(withdraw_command)
    app.add_typer(group, name="flower")


def init_command(
    folder: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    run: Annotated[Path, typer.Option(help="The run's TOML file, as for trifed run.", show_default=False)],
    host: Annotated[str, typer.Option(help="The name or address by which sites reach the server.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="One port serves all.")] = 8443,
) -> None:
    """Write the server's folder."""
    _need_flower()
    from trifed.deployment.server_folder import write_server_folder

    told = write_server_folder(folder, run, host, port)
    typer.echo(f"{folder}: start.sh, register.sh and run.sh; what each does is in README.md")
    typer.echo(f"Give ca.pem to every site. Its SHA-256, to compare by telephone:\n  {told}")


def join_command(
    folder: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    name: Annotated[str, typer.Option(help="This site's name in reports; unique.", show_default=False)],
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server.", show_default=False)],
    ca: Annotated[Path, typer.Option(help="The server's ca.pem.", show_default=False)],
    data: Annotated[Path, typer.Option(help="This site's table, or folder.", show_default=False)],
    port: Annotated[int, typer.Option(min=1, max=65535, help="A free one, for this machine alone.")] = 9094,
) -> None:
    """Write a site's folder."""
    _need_flower()
    from trifed.deployment.certificates import fingerprint
    from trifed.deployment.site_folder import write_site_folder

    write_site_folder(folder, name, superlink, ca, data, port)
    typer.echo(f"{folder}: look at node.toml, send {name}.pub to the server's keeper, then start.sh")
    typer.echo(f"The server's authority, SHA-256:\n  {fingerprint(folder / 'ca.pem')}")


def status_command(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder at the server.", show_default=False)
    ],
) -> None:
    """How the sites of a run stand."""
    from rich.console import Console

    from trifed.deployment.status import run_status

    run, config = _run(folder)
    Console().print(_render_status(run_status(run, config.rounds)))


def _render_status(run: RunStatus) -> RenderableType:
    """A table with one row a site; below it the reasons for refusals."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    state = "finished" if run.finished else f"round {run.round} of {run.rounds} is done"
    table = Table(title=state, title_justify="left")
    table.add_column("site", overflow="fold")
    for column in ("examples", "last round", "took, s", "left out", "sent, KB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why not since")
    for site in run.clients:
        took = "" if site.seconds is None else f"{site.seconds:.1f}"
        numbers = (f"{site.examples:,}", str(site.last), took, str(site.left_out), f"{site.sent / 1000:.1f}")
        table.add_row(Text(site.name), *numbers, Text(site.reason))
    return Group(table, *(Text(f"refused: {reason}") for reason in run.refused))


def withdraw_command(
    folder: Annotated[Path, typer.Argument(help="A site's folder, or a run's at the server.", show_default=False)],
    client: Annotated[str | None, typer.Option(help="At the server: who leaves.", show_default=False)] = None,
) -> None:
    """A site leaves for good."""
    from trifed.deployment.membership import withdraw_from
    from trifed.deployment.withdrawal import leave

    if client is None:
        name = leave(folder)
        typer.echo(f"{name} leaves. Its node says so when the server asks next: leave it running until then.")
        typer.echo(f"{folder} stays as it is, models too.")
    elif withdraw_from(*_run(folder), client):
        typer.echo(f"{client}: its cores, its summary and what it had last are deleted; it is asked nothing more.")
    else:
        typer.echo(f"{client}: deleted before the next round, by the process that leads the run.")
    typer.echo("What cannot be undone: averages that others have received, and what they have learned from them;")
    typer.echo("one average for all, of methods that have one, until the next round; losses and bytes in the log.")


def _run(folder: Path) -> tuple[RunFolder, RunConfig]:
    """A run's folder at the server, and its settings."""
    from trifed.config.run import make_config, read_toml
    from trifed.federation.run_folder import RunFolder

    run = RunFolder.open(folder)
    return run, make_config(read_toml(run.path / "config.toml"), str(folder))


def _need_flower() -> None:
    from importlib.util import find_spec

    for name in NEEDED:
        if find_spec(name) is None:
            raise RunError(f"this needs {name}, which is not installed: pip install 'trifed[flower]'")
