"""The tables that `trifed flower` prints: a list's sites, a run's sites, and what left a site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from trifed.deployment.checkpoint import RunStatus
    from trifed.deployment.release_log import Release
    from trifed.deployment.site_keys import SiteKeys

SEALED = {"ready": "key of this round", "sum": "sum (masked)"}
"""Name of a reply's part in a sealed run → its description in the table of `trifed flower log`."""


def render_sites(now: SiteKeys, before: SiteKeys | None, own: str = "") -> RenderableType:
    """Return a table of a list's sites, and of what changed against an earlier one. `own`: this site's name."""
    from trifed.deployment.site_keys import changes, key_fingerprint

    changed = changes(before, now) if before else {}
    table = Table()
    table.add_column("site", overflow="fold")
    table.add_column("SHA-256 of its key", overflow="fold")
    table.add_column("changed", no_wrap=True)
    for name, key in now.keys.items():
        note = "this site" if name == own else changed.get(name, "")
        table.add_row(Text(name), key_fingerprint(key), note)
    removed = [name for name, change in changed.items() if change == "removed"]
    return Group(table, *(Text(f"removed: {name}") for name in removed))


def render_status(run: RunStatus, sealed: bool) -> RenderableType:
    """Return a table with one row for each site, and below it the reasons for refusals.

    In a sealed run the server learns neither a site's number of examples nor its time.
    """
    state = "finished" if run.finished else f"round {run.round} of {run.rounds} is done"
    state += f"; sealed, {run.sums} sums opened" if sealed else ""
    table = Table(title=state, title_justify="left")
    table.add_column("site", overflow="fold")
    for column in ("examples", "last round", "took, s", "left out", "sent, KB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why not since")
    for site in run.clients:
        took = "" if site.seconds is None or sealed else f"{site.seconds:.1f}"
        table.add_row(
            Text(site.name),
            "not told" if sealed else f"{site.examples:,}",
            str(site.last),
            took,
            str(site.left_out),
            f"{site.sent / 1000:.1f}",
            Text(site.reason),
        )
    return Group(table, *(Text(f"refused: {reason}") for reason in run.refused))


def render_releases(releases: Sequence[Release]) -> RenderableType:
    """Return for each run a table with one row for each reply, and below them the sums."""
    runs: dict[str, list[Release]] = {}
    for release in releases:
        runs.setdefault(release.run, []).append(release)
    total = sum(release.bytes for release in releases)
    tables = (_run_table(name, own) for name, own in runs.items())
    return Group(*tables, Text(f"{len(releases)} replies, {total:,} bytes in messages"))


def _run_table(name: str, releases: Sequence[Release]) -> RenderableType:
    """Return a table with one row for each reply of a run."""
    table = Table(title=Text(name), title_justify="left")
    table.add_column("time, UTC", no_wrap=True)
    table.add_column("round", justify="right")
    table.add_column("request")
    table.add_column("what left", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    spent = any(release.epsilon is not None for release in releases)
    if spent:
        table.add_column("ε so far", justify="right", no_wrap=True)
    for release in releases:
        parts = [SEALED.get(part, f"{part} ({len(kept.tensors)} tensors)") for part, kept in release.parts.items()]
        facts = [f"{fact}={value}" for fact, value in release.facts.items()]
        left = (
            f"refused: {release.error}" if release.error else ", ".join([*parts, *facts]) or "nothing but 'done'"
        )
        numbers = [f"{release.bytes:,}"]
        if spent:
            numbers.append("" if release.epsilon is None else f"{release.epsilon:.2f}")
        time = release.time.removesuffix("+00:00").replace("T", " ")
        table.add_row(Text(time), str(release.round), release.kind, Text(left), *numbers)
    return table
