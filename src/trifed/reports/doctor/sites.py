"""Check a server's folder (`trifed flower init`) and a site's folder (`trifed flower join`)."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509

from trifed.common.lock import LOCK
from trifed.config.run import RunConfig
from trifed.config.toml_files import read_toml
from trifed.data.readers import TextFormat, read_file
from trifed.data.sources import is_on_hub
from trifed.deployment.certificates import belongs, read_certificate, refuse_other_authority
from trifed.deployment.checkpoint import FACTS
from trifed.deployment.release_log import Release, read_releases
from trifed.deployment.run_checks import check_new_run
from trifed.deployment.site_keys import LIST, SiteKeys, changes, collect_site_keys, read_site_keys, trusted_sites
from trifed.deployment.site_settings import LEFT, SiteSettings, read_site_settings
from trifed.deployment.site_store import SiteStore
from trifed.federation.client_model import read_client
from trifed.federation.run_folder import PRIVACY, refuse_unwritable
from trifed.reports.doctor import Check, attempt, check_files, check_lock, judge, under
from trifed.reports.doctor.runs import RESTORE, SETTINGS, check_ledgers, check_run, read_run_settings
from trifed.reports.format import listing, plural

SECONDS = 3.0
"""Seconds that a server has to accept a connection."""
MOST_NAMED = 20
"""Sites of a list that are named."""
SOON = 30
"""Days before the end of a certificate from which it is a warning."""
NEW_SERVER = "Put back the files of one `trifed flower init`, or write a new server's folder."
ASK = "Ask the server's operator for the ca.pem that the server uses now."
ANEW = "Restore a copy; without one, remove the named file, but never a ledger: the site then starts again."
START = "Write a new folder with `trifed flower join`, and copy its start.sh into this one."
NEW_SITE = "Restore the key; without it, write a new site's folder and have its new .pub registered."


def check_server_folder(path: Path) -> Iterator[Check]:
    """Check a server's folder: settings, certificates, keys, list of sites, paths, port, and every kept run."""
    settings = partial(read_run_settings, path / "app/run.toml")
    config = yield from attempt("settings", settings, SETTINGS, NEW_SERVER)
    yield from check_credentials(path)
    if config is not None:
        yield from check_start(path, config)
        yield from check_list(path, config)
    yield from check_paths(path)
    yield from check_port(path)
    whole = yield from check_files(path, RESTORE)
    for inner in sorted((path / "runs").glob("*/config.toml")):
        yield from under(f"runs/{inner.parent.name}", check_run(inner.parent, whole))


def check_site_folder(path: Path) -> Iterator[Check]:
    """Check a site's folder: settings, certificate, key, ports, data, and every kept run."""
    good, mend = "Valid: the site's name is {0.name}.", f"Correct it in {path / 'node.toml'}."
    settings = yield from attempt("settings", partial(read_site_settings, path / "node.toml"), good, mend)
    yield from check_certificate(path / "ca.pem", ASK)
    key = path / (_flag(path, "auth-supernode-private-key") or "key")
    yield from check_key(key, key.with_suffix(".pub"), NEW_SITE)
    mine = "trifed-clientapp" in _script(path)
    found = (
        "start.sh runs the app that the server sends, as earlier versions did: the server can run any code here."
    )
    yield from judge("app", "start.sh runs the installed trifed alone.", (not mine, "problem", found, START))
    mend = "Check that the server's start.sh runs and that no firewall is between; the run waits for it."
    server = partial(_connect, _flag(path, "superlink"))
    yield from attempt("server", server, "It accepts connections.", mend, "warning")
    yield from check_port(path)
    if settings is not None:
        yield from check_trusted_sites(settings, path)
        mend = "Correct the file, or data.source in node.toml."
        yield from attempt("data", partial(check_site_data, settings), "{}", mend)
        yield from check_kept(settings.folder)


# -- certificates and keys


def check_credentials(path: Path) -> Iterator[Check]:
    """Check the certificates and keys of a server's authority and the server. No key is quoted."""
    authority = yield from check_certificate(path / "ca.pem", NEW_SERVER)
    server = yield from check_certificate(path / "server.pem", NEW_SERVER)
    if authority and server:
        signed = partial(refuse_other_authority, server, authority)
        yield from attempt("signature", signed, "server.pem was signed by the authority in ca.pem.", NEW_SERVER)
        yield from check_key(path / "server.key", path / "server.pem", NEW_SERVER)
        if (path / "ca.key").is_file():  # it is better kept elsewhere
            yield from check_key(path / "ca.key", path / "ca.pem", NEW_SERVER)


def check_certificate(path: Path, mend: str) -> Generator[Check, None, x509.Certificate | None]:
    """Check that a file holds a certificate that is valid today; return it too."""
    found = yield from attempt(path.name, partial(read_certificate, path), "", mend)
    if found is not None:
        now, begin, end = datetime.now(UTC), found.not_valid_before_utc, found.not_valid_after_utc
        dates = f"Valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}"
        yield from judge(
            path.name,
            f"{dates}.",
            (not begin <= now < end, "problem", f"{dates}; this machine's clock says {now:%Y-%m-%d}.", mend),
            (0 <= (end - now).days < SOON, "warning", f"{dates}: it expires in less than {SOON} days.", mend),
        )
    return found


def check_key(path: Path, public: Path, mend: str) -> Iterator[Check]:
    """Check who can read a private key, and whether it belongs to a certificate or `.pub` file."""
    fits = yield from attempt(path.name, partial(belongs, path, public), "", mend)
    if fits is not None:
        mode = f"Other users of this machine can read it (mode {path.stat().st_mode & 0o777:o})."
        yield from judge(
            path.name,
            f"Only its owner can read it, and it belongs to {public.name}.",
            (path.stat().st_mode & 0o077, "problem", mode, f"chmod 600 {shlex.quote(str(path))}"),
            (not fits, "problem", f"It does not belong to {public.name}.", mend),
        )


def check_start(path: Path, config: RunConfig) -> Iterator[Check]:
    """Check that a run that has not begun can have enough sites in a round."""
    if not (path / "runs" / config.name / FACTS).is_file():  # otherwise more sites may have joined since
        mend = f"Correct it in {path / 'app/run.toml'}."
        enough = "A round can have as many sites as it needs."
        yield from attempt("sites of a round", partial(check_new_run, config), enough, mend)


def check_list(path: Path, config: RunConfig) -> Iterator[Check]:
    """Check that a sealed run's server has written the list of its sites' keys, with the keys that it has now."""
    if not config.sealing.on:
        yield Check("sites", "skipped", "The run is not sealed: the server receives each site's upload.")
        return
    mend = (
        f"When the sites' .pub files are in keys/: trifed flower sites {shlex.quote(str(path))}, and send {LIST} "
        "to every site."
    )
    if not (path / LIST).is_file():
        yield Check(
            "sites", "warning", f"The run is sealed, and {LIST}, which every site needs, is missing.", mend
        )
        return
    listed = yield from attempt("sites", partial(read_site_keys, path / LIST), "", mend)
    now = yield from attempt(
        "sites", partial(collect_site_keys, path), "", "Put the sites' .pub files into keys/."
    )
    if listed is not None and now is not None:
        needed = max(config.sealing.at_least, config.deployment.clients)
        few = f"The run waits for {needed} sites, and the list has {len(now.keys)}: {', '.join(now.keys)}."
        found = ", ".join(f"{name} ({change})" for name, change in changes(listed, now).items())
        yield from judge(
            "sites",
            f"The run is sealed. {_described(now)}",
            (
                listed != now,
                "warning",
                f"{LIST} is older than the keys in keys/ and keys/registered/: {found}.",
                mend,
            ),
            (len(now.keys) < needed, "warning", few, f"Ask more sites for their .pub files. {mend}"),
        )


def check_trusted_sites(settings: SiteSettings, folder: Path) -> Iterator[Check]:
    """Check the list of the sites with which this one sends sealed sums; without it, sealed runs are refused."""
    mend = f"Ask the server's operator for {LIST}; then: trifed flower trust {shlex.quote(str(folder))} {LIST}"
    if settings.sites.is_file():
        yield from attempt("sites", partial(_trusted, settings), "{}", mend)
        return
    greeted = yield from attempt("log", partial(_greetings, settings.folder), "", ANEW)
    if greeted is None:
        return
    last, none = (greeted[-1] if greeted else None), f"No {settings.sites.name}"
    if settings.sealed_only:
        found = f"{none}: this site refuses every run, because sealed_only is true in its node.toml."
        yield Check("sites", "problem", found, mend)
    elif last and last.error == "no_site_keys":
        yield Check("sites", "problem", f"{none}: this site refused a sealed run at {last.time}.", mend)
    elif last and not last.error and not _is_sealed(settings.folder / last.run):
        yield Check("sites", "skipped", f"{none}: the last run here is not sealed, and needs no list.")
    else:
        found = f"{none}: this site refuses sealed runs, which runs with three or more sites are by default."
        yield Check("sites", "warning", found, f"{mend}\nA run that is not sealed needs no list.")


def _greetings(folder: Path) -> list[Release]:
    """Return a site's replies to the greetings of runs, in order."""
    return [release for release in read_releases(folder) if release.kind == "hello"]


def _is_sealed(folder: Path) -> bool:
    """Return whether a kept run is sealed; True if its settings are not there."""
    values = SiteStore.settings_of(folder)
    return values is None or bool(values.get("sealing", {}).get("on"))


def _trusted(settings: SiteSettings) -> str:
    return _described(trusted_sites(settings))


def _described(listed: SiteKeys) -> str:
    names = [*list(listed.keys)[:MOST_NAMED], *["…"] * (len(listed.keys) > MOST_NAMED)]
    return f"{plural(len(listed.keys), 'site')}: {', '.join(names)}. SHA-256 of the list: {listed.fingerprint}"


# -- paths and connections


def check_paths(path: Path) -> Iterator[Check]:
    """Check that the absolute paths in a server's files lead into this folder, which may have been moved."""
    places = yield from attempt("paths", partial(_places, path), "", NEW_SERVER)
    away = [str(place) for place in places or () if path.resolve() not in place.resolve().parents]
    found = f"flwr/config.toml and app/pyproject.toml lead out of this folder, to {listing(away)}."
    mend = f"Replace the old folder in both files by {path.resolve()}, or move the folder back."
    yield from judge("paths", "They lead into this folder.", (away, "problem", found, mend))


def _places(path: Path) -> list[Path]:
    app, flower = read_toml(path / "app/pyproject.toml"), read_toml(path / "flwr/config.toml")
    links = [link for link in flower["superlink"].values() if isinstance(link, dict)]
    authorities = [link["root-certificates"] for link in links if "root-certificates" in link]
    return [Path(place) for place in (*authorities, app["tool"]["flwr"]["app"]["config"]["folder"])]


def _script(path: Path) -> str:
    """Return a folder's start.sh; empty if there is none."""
    script = path / "start.sh"
    return script.read_text(encoding="utf-8") if script.is_file() else ""


def _flag(path: Path, name: str) -> str:
    """Return the value of a flag in a folder's start.sh; empty if there is none."""
    found = re.search(rf"--{name} (\S+)", _script(path))
    return shlex.split(found[1])[0] if found else ""


def check_port(path: Path) -> Iterator[Check]:
    """Check whether the port in start.sh is free, by binding it for a moment."""
    mend = "Nothing to do if start.sh runs; otherwise write another --port into the scripts."
    yield from attempt(
        "port", partial(_bind, _flag(path, "port")), "It is free; start.sh does not run.", mend, "warning"
    )


def _bind(port: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", int(port)))


def _connect(superlink: str) -> None:
    host, _, port = superlink.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()


# -- what a site keeps


def check_site_data(settings: SiteSettings) -> str:
    """Return a sentence about a site's tables; DataError if one cannot be read."""
    source = settings.data["source"]
    paths = [Path(name).expanduser() for name in (source if isinstance(source, list) else [source])]
    given = settings.data
    form = TextFormat(given.get("separator"), given.get("encoding"), "data.encoding", sheet=given.get("sheet"))
    tables = [read_file(path, {}, form) for path in paths if not path.is_dir() and not is_on_hub(str(path))]
    rows = plural(sum(len(table.rows) for table in tables), "row")
    return f"{rows} in {plural(len(tables), 'table')}; folders and names on the hub are read when a run begins."


def check_kept(folder: Path) -> Iterator[Check]:
    """Check the folder in which a site keeps its runs, and every run in it."""
    mend = "Give the folder to the user that runs start.sh, or name another one in node.toml."
    yield from attempt(
        "kept runs", partial(refuse_unwritable, folder, "see below"), f"{folder} can be written.", mend
    )
    if not folder.is_dir():
        return
    yield from check_lock(folder / LOCK, "Wait for the process that answers the server, or end it.")
    left, mend = (
        "This site has left for good.",
        "To take part again, write a new site's folder under another name.",
    )
    yield from judge("withdrawal", "This site has not left.", ((folder / LEFT).is_file(), "warning", left, mend))
    if (yield from check_files(folder, ANEW)):
        for inner in sorted(folder.glob("*/run.json")):
            yield from under(inner.parent.name, check_store(SiteStore(inner.parent)))


def check_store(store: SiteStore) -> Iterator[Check]:
    """Check one run that a site keeps: its states, its ledger and its final model."""
    yield from attempt("state", store.rounds, "The rounds whose states are kept: {}.", ANEW)
    yield from check_ledgers(store.folder / PRIVACY)
    if store.finished():
        yield from attempt(
            "model", partial(read_client, store.model), "It can be read.", "Restore a copy of the folder."
        )
