"""New folders for runs between sites by Flower: the server's, and a site's.

The server's folder has Flower's app with the run, TLS certificates, and scripts that start, register and run. A
site's folder has its key, the server's authority, the site's settings, and a script that starts its node.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ConfigError, RunError
from trifed.common.files import is_free, whole_folder
from trifed.config.run import RunConfig, make_config, to_toml
from trifed.config.settings import NAMED_LABELS
from trifed.config.toml_files import read_toml
from trifed.deployment.certificates import fingerprint, write_authority, write_node_keys, write_server
from trifed.deployment.folder_templates import (
    CLIENT,
    NODE,
    PLAIN_PATH,
    PROJECT,
    QUIET,
    README,
    SCRIPTS,
    SERVER,
    SITE_START,
)
from trifed.deployment.ports import find_port, ports_beside
from trifed.deployment.protocol import AT_THE_CLIENTS, LEFT_AT_HOME
from trifed.deployment.run_checks import check_for_sites, check_new_run
from trifed.deployment.sealed_by_default import sealed_by_default
from trifed.deployment.site_settings import site_settings

HERE = ("localhost", "127.0.0.1")
"""Hosts at which the server's own processes reach it."""
HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
FLOWERS_NAMES = ("default", "simulation")
"""Names that have another meaning among Flower's connections."""


def read_run(path: Path) -> RunConfig:
    """Return a run's settings for sites that bring their own data.

    Raises:
        ConfigError: There are mistakes, no labels although the task learns labels, or settings of single clients.
    """
    values = read_toml(path)
    if isinstance(values.get("data"), dict):  # a simulated run's data are not what the sites have
        values["data"] = {name: value for name, value in values["data"].items() if name not in LEFT_AT_HOME}
    config = make_config(
        deep_merge(values, {"data": {"source": AT_THE_CLIENTS, "clients": {"split": "files"}}}), str(path)
    )
    if config.adapter.start is not None:
        raise ConfigError(
            [f"adapter.start: got '{config.adapter.start}', but sites have no files of the server; leave it out"],
            str(path),
        )
    if config.task in NAMED_LABELS and not config.data.labels:
        raise ConfigError(
            ['data.labels: missing; name all labels, as labels = ["no", "yes"]: no site sees those of the others'],
            str(path),
        )
    if config.client_settings:
        raise ConfigError(
            ["client_settings: leave them out; a site has its own in the table [training] of its node.toml"],
            str(path),
        )
    return config


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a private folder, which becomes `folder` at the end of the block.

    Raises:
        RunError: Something is there already, Flower cannot read the path, or nothing can be written.
    """
    if not is_free(folder):
        raise RunError(f"{folder}: something is there already; give another folder, or remove it first")
    wrong = sorted({letter for letter in str(folder.absolute()) if letter in "'\x7f" or letter < " "})
    if wrong:
        raise RunError(
            f"{str(folder)!r}: the path has {', '.join(map(ascii, wrong))} in it, which Flower cannot read; "
            f"give a folder without it"
        )
    try:
        with whole_folder(folder) as partial:
            partial.chmod(0o700)
            yield partial
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error}); give another folder") from error


def _check_host(host: str, flag: str) -> None:
    """Raise `RunError` for what is neither a host name nor an IP address; it is written into scripts."""
    try:
        ipaddress.ip_address(host if "%" not in host else "")  # any text may follow a %
    except ValueError:
        if not HOST_NAME.fullmatch(host):
            raise RunError(
                f"{flag}: got {host!r}, expected a host name of letters, digits, '-' and '.', or an IP address"
            ) from None


def write_server_folder(folder: Path, run: Path, host: str, port: int) -> tuple[str, str]:
    """Write a new server's folder.

    Returns:
        The fingerprint of its authority, and sentences that say whether the run is sealed, and why.

    Raises:
        ConfigError: See `read_run` and `check_new_run`; or a name that Flower uses itself.
        RunError: See `check_for_sites`; or the host or the folder cannot be used, or nothing can be written.
    """
    config, sealing = sealed_by_default(read_run(run))
    check_for_sites(config)
    check_new_run(config, str(run))
    final = folder.absolute()
    _check_host(host, "--host")
    if config.name in FLOWERS_NAMES:
        raise ConfigError([f"name: got '{config.name}', which Flower uses itself; give another"], str(run))
    connection = {
        "address": f"127.0.0.1:{port}", "root-certificates": str(final / "ca.pem"), "insecure": False,
    }  # fmt: skip
    links = {"default": config.name, config.name: connection, "simulation": {"address": ":local:"}}
    with _new_folder(folder) as partial:
        write_authority(partial, config.name)
        write_server(partial, config.name, [host, *HERE])
        _write_app(partial / "app", config, final / "runs" / config.name)
        _write(partial / "flwr/config.toml", "{text}", text=tomli_w.dumps({"superlink": links}))
        for script, text in SCRIPTS.items():
            _write(partial / script, text, quiet=QUIET, check=PLAIN_PATH, name=shlex.quote(config.name), port=port)
        _write(partial / "README.md", README, name=config.name, host=host, port=port)
        (partial / "keys").mkdir()
    return fingerprint(folder / "ca.pem"), sealing


def _write_app(folder: Path, config: RunConfig, kept: Path) -> None:
    package = re.sub(r"\W", "_", config.name.lower())
    package = f"run_{package}" if not package[0].isalpha() else package
    _write(
        folder / "pyproject.toml",
        PROJECT,
        name=package.replace("_", "-"),
        package=package,
        folder=_toml("folder", kept),
    )
    _write(folder / "run.toml", "{run}", run=to_toml(config))
    _write(folder / package / "__init__.py", '"""A run between sites."""\n')
    _write(folder / package / "server.py", SERVER)
    _write(folder / package / "client.py", CLIENT)


def write_site_folder(
    folder: Path, name: str, superlink: str, authority: Path, data: Path, port: int | None = None
) -> None:
    """Write a new site's folder.

    Args:
        folder: The new folder.
        name: The site's name in reports.
        superlink: The server, as HOST:PORT.
        authority: The server's ca.pem.
        data: The site's table, or a folder.
        port: A port of this machine, which only the site's own processes use. None: one that is free, and that no
            folder beside the new one uses.

    Raises:
        ConfigError: The name cannot be used.
        RunError: Something is there already, another argument cannot be used, or nothing can be written.
    """
    for path, what in ((authority, "the server's ca.pem"), (data, "this site's data")):
        if not path.exists():
            raise RunError(f"{path}: no such file; expected {what}")
    host, _, number = superlink.rpartition(":")
    if not (re.fullmatch("[1-9][0-9]{0,4}", number) and int(number) < 2**16):
        raise RunError(f"--superlink: got {superlink!r}, expected HOST:PORT, with a port from 1 to 65535")
    _check_host(host[1:-1] if host.startswith("[") and host.endswith("]") else host, "--superlink")
    fingerprint(authority)  # before anything is written: is it a certificate?
    source = str(data.absolute())
    site_settings({"name": name, "data": {"source": source}}, "--name")
    port = port or find_port(ports_beside(folder))
    with _new_folder(folder) as partial:
        shutil.copyfile(authority, partial / "ca.pem")
        write_node_keys(partial, name)
        _write(partial / "node.toml", NODE, name=name, source=_toml("source", source))
        quoted = {"superlink": shlex.quote(superlink), "name": shlex.quote(name)}
        _write(partial / "start.sh", SITE_START, quiet=QUIET, check=PLAIN_PATH, port=port, **quoted)


def _toml(key: str, value: object) -> str:
    """Return `key = "value"` as TOML."""
    return tomli_w.dumps({key: str(value)}).strip()


def _write(path: Path, template: str, **values: object) -> None:
    """Write a file from a template, into a folder that is made if needed; a script can be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.format(**values), encoding="utf-8")
    if path.suffix == ".sh":
        path.chmod(0o755)
