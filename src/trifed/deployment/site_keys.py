"""Lists of the sites' public keys, by which a site recognises the other sites of a sealed sum.

A list is a file with one public key a line, in OpenSSH's format with the site's name as comment, sorted by name.
The server writes it from the keys that the sites have sent. Each site compares its fingerprint with the other
sites, not through the server, and stores it. A server cannot add sites of its own without being noticed.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from trifed.common.errors import RunError
from trifed.common.files import whole_file
from trifed.config.toml_files import read_toml
from trifed.deployment.certificates import CURVE, read_private
from trifed.deployment.site_settings import NAME_PATTERN, SiteSettings

MOST_SITES = 10_000
MOST_BYTES = 4_000_000
"""Bytes of a list that are read at most; 10,000 sites with the longest names have less."""
LIST = "sites.pub"
"""File with the list in a server's and in a site's folder."""
COMPARE = "ask the server's operator for the list again, and compare its fingerprint with the other sites"

PublicKey = ec.EllipticCurvePublicKey


@dataclass(frozen=True)
class SiteKeys:
    """Public keys by the site's name, sorted by name."""

    keys: Mapping[str, PublicKey]

    def get(self, name: str) -> PublicKey | None:
        """Return a site's public key; None if the site is not in the list."""
        return self.keys.get(name)

    @cached_property
    def text(self) -> str:
        """The list as the file's content."""
        return "".join(f"{key_text(key)} {name}\n" for name, key in self.keys.items())

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the list's content, to compare between sites."""
        return _hex(self.text.encode())

    def write(self, path: Path) -> None:
        """Write the list, whole or not at all; RunError if it cannot be written."""
        try:
            with whole_file(path) as partial:
                partial.write_text(self.text, encoding="utf-8")
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def key_text(key: PublicKey) -> str:
    """Return a public key as OpenSSH writes it, without a comment."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def key_fingerprint(key: PublicKey) -> str:
    """Return the SHA-256 of a public key in hexadecimal; `ssh-keygen -lf NAME.pub` shows the same in base64."""
    return _hex(base64.b64decode(key_text(key).split()[1]))


def read_site_keys(path: Path) -> SiteKeys:
    """Return the list in a file, sorted by name.

    Raises:
        RunError: It cannot be read, is empty or has too many lines; a line is no P-256 key with a name; or a name
            or a key occurs twice.
    """
    return _unique({f"{path}, line {place}": line for place, line in enumerate(_lines(path), 1)}, str(path))


def run_is_sealed(folder: Path) -> bool:
    """Return whether the run of a server's folder is sealed.

    Raises:
        RunError: It is no server's folder.
        ConfigError: The run's file cannot be read.
    """
    run = folder / "app/run.toml"
    if not run.is_file():
        raise RunError(f"{folder}: no server's folder (it has no app/run.toml); give that of `trifed flower init`")
    sealing = read_toml(run).get("sealing")
    return isinstance(sealing, dict) and sealing.get("on") is True


def collect_site_keys(folder: Path) -> SiteKeys:
    """Return the list of all keys in a server's folder: keys/*.pub, and those that register.sh has moved.

    Raises:
        RunError: There are none, or see `read_site_keys`; the message names the file.
    """
    paths = sorted([*(folder / "keys").glob("*.pub"), *(folder / "keys/registered").glob("*.pub")])
    found: dict[str, str] = {}
    for path in paths:
        lines = [line for line in _lines(path) if line.strip()]
        if len(lines) != 1:
            raise RunError(
                f"{path}: got {len(lines)} lines, expected one public key; if it is a list of sites, remove it "
                "here, otherwise ask the site for its .pub again"
            )
        if lines[0] not in found.values():  # a site may send its key again
            found[str(path)] = lines[0]
    if not found:
        raise RunError(f"{folder / 'keys'}: no keys there yet; put the sites' .pub files there")
    return _unique(found, str(folder / "keys"))


def own_key(settings: SiteSettings) -> ec.EllipticCurvePrivateKey:
    """Return a site's own private key, with which it signs its keys of a round.

    Raises:
        RunError: There is none, or it is not on the curve P-256.
    """
    if settings.key is None or not settings.key.is_file():
        raise RunError(
            f"{settings.key or settings.name + '.key'}: no such file; put this site's key back, or name it in "
            f'node.toml as key = "…"'
        )
    private = read_private(settings.key)
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not _is_p256(private):
        raise RunError(
            f"{settings.key}: expected a key on the curve P-256; write a new folder by `trifed flower join`"
        )
    return private


def trusted_sites(settings: SiteSettings) -> SiteKeys:
    """Return the list that a site has stored, with the site itself in it.

    Raises:
        RunError: There is none, it cannot be read, or this site is not in it with its own key.
    """
    if not settings.sites.is_file():
        raise RunError(
            f"{settings.sites}: no such file, so this site takes part in no sealed run; ask the server's operator "
            f"for the list, and store it by `trifed flower trust`"
        )
    listed = read_site_keys(settings.sites)
    refuse_other_self(listed, settings, str(settings.sites))
    return listed


def refuse_other_self(listed: SiteKeys, settings: SiteSettings, source: str) -> None:
    """Raise `RunError` if a list does not have the site itself, with its own key. `source`: the list's file."""
    mine, found = own_key(settings).public_key(), listed.get(settings.name)
    if found is None:
        other = next((name for name, key in listed.keys.items() if key == mine), None)
        named = f"it has this site's key as '{other}'" if other else f"it has {len(listed.keys)} other sites"
        raise RunError(
            f"{source}: '{settings.name}' is not in the list; {named}. Send {settings.name}.pub to the server's "
            f"operator, and ask for a new list"
        )
    if found != mine:
        raise RunError(
            f"{source}: '{settings.name}' has another key there, {key_fingerprint(found)}, than this site's own, "
            f"{key_fingerprint(mine)}; send {settings.name}.pub to the server's operator, and ask for a new list"
        )


def changes(before: SiteKeys, now: SiteKeys) -> dict[str, str]:
    """Return "new", "other key" or "removed" for each site that differs between two lists."""
    names = sorted({*before.keys, *now.keys})
    return {name: _change(before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def _change(before: PublicKey | None, now: PublicKey | None) -> str:
    return "new" if before is None else "removed" if now is None else "other key"


def _lines(path: Path) -> list[str]:
    """Return a file's lines; RunError if it cannot be read, or is too large."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RunError(f"{path}: got over {MOST_BYTES:,} bytes, expected a list of public keys; {COMPARE}")
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise RunError(f"{path}: cannot be read ({reason}); expected a list of public keys") from error


def _unique(lines: Mapping[str, str], source: str) -> SiteKeys:
    """Return the list of lines by their places; RunError if a name or a key occurs twice, or for their number."""
    keys: dict[str, PublicKey] = {}
    places: dict[str, str] = {}
    for place, line in lines.items():
        if not line.strip():
            continue
        name, key = _parsed(line, place)
        for kind, value in (("name", f"name {name}"), ("key", f"key {key_text(key)}")):
            if value in places:
                raise RunError(
                    f"{place}: '{name}' has the same {kind} as {places[value]}; expected each once; {COMPARE}"
                )
            places[value] = place
        keys[name] = key
    if not 1 <= len(keys) <= MOST_SITES:
        raise RunError(f"{source}: got {len(keys)} keys, expected 1 to {MOST_SITES:,}; {COMPARE}")
    return SiteKeys(dict(sorted(keys.items())))


def _parsed(line: str, place: str) -> tuple[str, PublicKey]:
    """Return the name and the key of one line; RunError, with its place, if it is anything else."""
    words = line.split()
    name = words[2] if len(words) == 3 else ""
    key: object = None
    with suppress(ValueError, UnsupportedAlgorithm):
        key = load_ssh_public_key(" ".join(words[:2]).encode())
    if not re.fullmatch(NAME_PATTERN, name) or not isinstance(key, PublicKey) or not _is_p256(key):
        raise RunError(
            f"{place}: expected ecdsa-sha2-nistp256, a key and a site's name, as in the .pub file that "
            f"`trifed flower join` writes; {COMPARE}"
        )
    return name, key


def _is_p256(key: ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) -> bool:
    return key.curve.name == CURVE.name


def _hex(content: bytes) -> str:
    return hashlib.sha256(content).digest().hex(":")
