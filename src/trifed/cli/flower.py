"""`trifed flower`: runs between sites, by Flower."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trifed.cli.flower_tables import render_releases, render_sites, render_status
from trifed.common.console import PlainConsole
from trifed.common.errors import RunError, damage_in

if TYPE_CHECKING:
    from trifed.config.run import RunConfig
    from trifed.deployment.site_keys import SiteKeys
    from trifed.federation.run_folder import RunFolder

LIST = "sites.pub"
"""File with the list of the sites' keys."""
app = typer.Typer(
    help="""Run between sites with Flower: a SuperLink at the server and a SuperNode at every site.

Use `init` at the server and `join` at each site; docs/deployment.md has all
steps. Needs pip install '.\\[flower]' in your copy of trifed's repository.
""",
    no_args_is_help=True,
)


@app.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    run: Annotated[Path, typer.Option(help="The run's TOML file, as for trifed run.", show_default=False)],
    host: Annotated[str, typer.Option(help="Name or address at which sites reach the server.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port; one is enough.")] = 8443,
) -> None:
    """Write the server's folder: the run (sealed with three or more sites) as a Flower app, certificates, scripts.

    [bold]Examples[/bold]

      trifed flower init server --run run.toml --host federation.example.org
    \b
      server/start.sh
    """
    _need_flower()
    from trifed.deployment.folders import write_server_folder

    fingerprint, sealing = write_server_folder(folder, run, host, port)
    typer.echo(
        f"{folder}: start.sh, register.sh and run.sh; README.md says what each does\nThe run is {sealing}\n"
        f"Give ca.pem to every site. Its SHA-256, to compare by telephone:\n  {fingerprint}"
    )


@app.command("join")
def join_command(
    folder: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    name: Annotated[str, typer.Option(help="This site's name in reports; unique.", show_default=False)],
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server.", show_default=False)],
    ca: Annotated[Path, typer.Option(help="The server's ca.pem.", show_default=False)],
    data: Annotated[Path, typer.Option(help="This site's table, or a folder.", show_default=False)],
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Local port. Default: a free one.")] = None,
) -> None:
    """Write a site's folder: its own key, its settings, and a script that starts its node.

    [bold]Examples[/bold]

      trifed flower join site --name berlin --superlink federation.example.org:8443 --ca ca.pem --data tickets.csv
    """
    _need_flower()
    from trifed.deployment.certificates import fingerprint
    from trifed.deployment.folders import write_site_folder
    from trifed.deployment.site_keys import key_fingerprint, read_site_keys

    write_site_folder(folder, name, superlink, ca, data, port)
    own = read_site_keys(folder / f"{name}.pub").keys[name]
    typer.echo(
        f"{folder}: check node.toml, send {name}.pub to the server's operator, then run start.sh\n"
        f"For sealed sums also: trifed flower trust {shlex.quote(str(folder))} {LIST}, with the list of all\n"
        f"sites' keys that the operator sends to every site\n"
        f"SHA-256 of this site's key {name}.pub:\n  {key_fingerprint(own)}\n"
        f"SHA-256 of the server's certificate authority:\n  {fingerprint(folder / 'ca.pem')}"
    )


@app.command("sites")
def sites_command(
    folder: Annotated[Path, typer.Argument(metavar="SERVER", help="The server's folder.", show_default=False)],
) -> None:
    """Write sites.pub: the list of the sites' public keys, which sealed sums need at every site.

    The list has all keys in keys/ and keys/registered/. If a site has left, first remove its .pub there.

    [bold]Example[/bold]: trifed flower sites server
    """
    _need_flower()
    from trifed.deployment.site_keys import collect_site_keys, run_is_sealed

    path, sealed = folder / LIST, run_is_sealed(folder)
    now, before = collect_site_keys(folder), _earlier(path)
    now.write(path)
    PlainConsole().print(render_sites(now, before))
    if not sealed:
        typer.echo("This run is not sealed (sealing.on in app/run.toml); only a sealed run needs the list.")
    typer.echo(
        f"{path}: send it to every site, which stores it by `trifed flower trust`\n"
        f"The sites compare this SHA-256 of the list with each other by telephone:\n  {now.fingerprint}"
    )


@app.command("trust")
def trust_command(
    folder: Annotated[Path, typer.Argument(metavar="SITE", help="This site's folder.", show_default=False)],
    listed: Annotated[Path, typer.Argument(metavar=LIST, help="The list of all sites.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Store the list without asking.")] = False,
) -> None:
    """Store the list of all sites' public keys at a site: sealed sums are sent with these sites only.

    Compare the fingerprint with the other sites, not with the server: a list could have sites that do not exist.

    [bold]Example[/bold]: trifed flower trust site sites.pub
    """
    _need_flower()
    from trifed.deployment.site_keys import read_site_keys, refuse_other_self
    from trifed.deployment.site_settings import read_site_settings

    if not (folder / "node.toml").is_file():
        raise RunError(f"{folder}: no site's folder (it has no node.toml); give that of `trifed flower join`")
    settings, now = read_site_settings(folder / "node.toml"), read_site_keys(listed)
    refuse_other_self(now, settings, str(listed))
    before = _earlier(settings.sites)
    PlainConsole().print(render_sites(now, before, settings.name))
    typer.echo(f"SHA-256 of the list, to compare with the other sites by telephone:\n  {now.fingerprint}")
    if now == before:
        typer.echo(f"{settings.sites}: this list is stored already")
    elif yes or _confirmed("Do the other sites have the same SHA-256, and do you know each site? Store the list?"):
        now.write(settings.sites)
        typer.echo(f"{settings.sites}: stored; sums have these {len(now.keys)} sites only. Next: start.sh")
        if not settings.sealed_only:
            typer.echo(
                f"To refuse runs that are not sealed, begin {folder / 'node.toml'} with:\n  sealed_only = true"
            )
    else:
        typer.echo("Nothing was stored.")
        raise typer.Exit(1)


def _earlier(path: Path) -> SiteKeys | None:
    """Return the list in a file that is about to be replaced; None if there is none, or if it is damaged."""
    from trifed.deployment.site_keys import read_site_keys

    try:
        return read_site_keys(path) if path.exists() else None
    except RunError as error:
        typer.echo(f"The earlier list is ignored: {error}")
        return None


def _confirmed(question: str) -> bool:
    """Return whether the user agrees; RunError if there is nobody to ask."""
    typer.echo(f"{question} [y/N] ", nl=False)
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        typer.echo()
        raise RunError(
            "nobody is there to ask; compare the list's SHA-256 first, then repeat with --yes"
        ) from None


@app.command("status")
def status_command(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder at the server.", show_default=False)
    ],
) -> None:
    """Show a run's sites: what each has sent, and which were skipped or refused, with the reason.

    [bold]Example[/bold]: trifed flower status server/runs/tickets
    """
    from trifed.deployment.checkpoint import run_status

    run, config = _open_run(folder)
    with damage_in(folder, "put the whole folder back"):
        status = render_status(run_status(run, config.rounds), config.sealing.on)
    PlainConsole().print(status)


@app.command("log")
def log_command(
    folder: Annotated[Path, typer.Argument(metavar="SITE", help="A site's folder.", show_default=False)],
    run: Annotated[str, typer.Option(help="Only runs whose name begins so.", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each reply.")] = False,
) -> None:
    """Show everything that left a site: when, in which round, what, how many bytes, and ε spent so far.

    The site writes each reply down before it sends it.

    [bold]Examples[/bold]

      trifed flower log site
    \b
      trifed flower log site --run tickets-1f --json
    """
    from trifed.deployment.release_log import read_releases
    from trifed.deployment.site_settings import read_site_settings

    if not (folder / "node.toml").is_file():
        raise RunError(
            f"{folder}: no site's folder (it has no node.toml); give the one that `trifed flower join` wrote"
        )
    releases = read_releases(read_site_settings(folder / "node.toml").folder)
    chosen = [release for release in releases if release.run.startswith(run)]
    if as_json:
        for release in chosen:
            typer.echo(json.dumps(asdict(release)))
    else:
        PlainConsole().print(render_releases(chosen))


@app.command("withdraw")
def withdraw_command(
    folder: Annotated[Path, typer.Argument(help="A site's folder, or a run's at the server.", show_default=False)],
    client: Annotated[
        str | None, typer.Option(help="At the server: the site that leaves.", show_default=False)
    ] = None,
) -> None:
    """Withdraw a site for good: the server deletes the site's data and no longer uses them.

    At the site, give the site's folder: its node sends the withdrawal with its next reply.

    At the server, give a run's folder and --client: the data are deleted at once, or before the run's next round.

    [bold]Examples[/bold]

      trifed flower withdraw site
    \b
      trifed flower withdraw server/runs/tickets --client berlin
    """
    from trifed.deployment.membership import withdraw_from
    from trifed.deployment.site_settings import leave

    if client is None:
        name = leave(folder)
        typer.echo(
            f"{name} leaves. Its node sends the withdrawal with its next reply; keep it running until then.\n"
            f"{folder} is not changed; its models stay too."
        )
    elif withdraw_from(*_open_run(folder), client):
        typer.echo(f"{client}: its cores, its summary and its last model are deleted; it takes part no more.")
    else:
        typer.echo(f"{client}: the server's process deletes its data before the next round.")
    typer.echo(
        "Not undone: averages that other sites have received and trained on; a common average, until the next\n"
        "round; losses and bytes in the log."
    )


def _open_run(folder: Path) -> tuple[RunFolder, RunConfig]:
    """Return a run's folder at the server, and its settings."""
    from trifed.config.run import read_config
    from trifed.federation.run_folder import RunFolder

    return RunFolder.open(folder), read_config(folder / "config.toml")


def _need_flower() -> None:
    for name in ("flwr", "cryptography"):
        if find_spec(name) is None:
            raise RunError(
                f"this command needs {name}: pip install '.[flower]' in your copy of trifed's repository"
            )
