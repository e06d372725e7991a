"""Lists of the sites' keys: what is read, what is refused, and what a site stores."""

from __future__ import annotations

import base64
import re
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trifed.common.errors import RunError
from trifed.deployment import site_keys
from trifed.deployment.certificates import write_node_keys
from trifed.deployment.site_keys import (
    SiteKeys,
    changes,
    collect_site_keys,
    key_fingerprint,
    own_key,
    read_site_keys,
    trusted_sites,
)
from trifed.deployment.site_settings import read_site_settings

NAMES = ("berlin", "paris", "rome")


def line_of(key, name):
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return f"{public} {name}\n"


@pytest.fixture
def server(tmp_path):
    """A server's folder with the keys of three sites, one of them registered; the sites' folders are beside it."""
    (tmp_path / "server/keys/registered").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / name).mkdir()
        write_node_keys(tmp_path / name, name)
        (tmp_path / name / "node.toml").write_text(f'name = "{name}"\n[data]\nsource = "x.csv"\n')
        place = "server/keys/registered" if name == "paris" else "server/keys"
        (tmp_path / place / f"{name}.pub").write_bytes((tmp_path / name / f"{name}.pub").read_bytes())
    return tmp_path / "server"


def settings_of(server, name="berlin"):
    return read_site_settings(server.parent / name / "node.toml")


def test_the_list_is_sorted_and_comes_back_whole(server):
    listed = collect_site_keys(server)
    listed.write(server / "sites.pub")
    lines = (server / "sites.pub").read_text().splitlines()
    assert [line.split()[2] for line in lines] == list(NAMES) == list(listed.keys)
    assert read_site_keys(server / "sites.pub") == listed
    (server / "sites.pub").write_text("\n".join(lines[::-1]))  # another order is the same list
    assert read_site_keys(server / "sites.pub").fingerprint == listed.fingerprint
    assert re.fullmatch("([0-9a-f]{2}:){31}[0-9a-f]{2}", listed.fingerprint)


def test_any_change_gives_another_fingerprint(server):
    listed = collect_site_keys(server).keys
    lists = [
        listed,
        {name: listed[name] for name in NAMES[:2]},
        {**listed, "rome": listed["paris"], "paris": listed["rome"]},
        {("rom" if name == "rome" else name): key for name, key in listed.items()},
    ]
    assert len({SiteKeys(each).fingerprint for each in lists}) == len(lists)


def test_a_keys_fingerprint_is_that_of_ssh_keygen(server):
    public = server.parent / "berlin/berlin.pub"
    try:
        shown = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")
    digest = base64.b64decode(shown.split()[1].removeprefix("SHA256:") + "=")
    assert key_fingerprint(collect_site_keys(server).keys["berlin"]) == digest.hex(":")


def test_a_key_that_was_sent_twice_counts_once(server):
    (server / "keys/registered/again.pub").write_bytes((server / "keys/rome.pub").read_bytes())
    assert list(collect_site_keys(server).keys) == list(NAMES)


LINE = line_of(ec.generate_private_key(ec.SECP256R1()), "oslo")
BAD = {
    "no name": LINE.rsplit(maxsplit=1)[0],
    "two names": LINE.strip() + " bergen",
    "a name that cannot be used": LINE.replace("oslo", "../oslo"),
    "another curve": line_of(ec.generate_private_key(ec.SECP384R1()), "oslo"),
    "another kind": line_of(ed25519.Ed25519PrivateKey.generate(), "oslo"),
    "no key": "ecdsa-sha2-nistp256 AAAA oslo",
    "words": "these are words",
    "a name twice": LINE + line_of(ec.generate_private_key(ec.SECP256R1()), "oslo"),
    "a key twice": LINE + LINE.replace("oslo", "bergen"),
    "nothing": "\n",
}


@pytest.mark.parametrize("name", BAD)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, name):
    (tmp_path / "sites.pub").write_text(BAD[name])
    with pytest.raises(RunError, match=r"sites\.pub"):
        read_site_keys(tmp_path / "sites.pub")


def test_limits_of_a_list(tmp_path, monkeypatch):
    path = tmp_path / "sites.pub"
    path.write_text(LINE + line_of(ec.generate_private_key(ec.SECP256R1()), "bergen"))
    monkeypatch.setattr(site_keys, "MOST_SITES", 1)
    with pytest.raises(RunError, match="got 2 keys"):
        read_site_keys(path)
    monkeypatch.setattr(site_keys, "MOST_BYTES", 100)
    with pytest.raises(RunError, match="over 100 bytes"):
        read_site_keys(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="not text"):
        read_site_keys(path)


def test_a_server_without_usable_keys_says_which(server):
    other = line_of(ec.generate_private_key(ec.SECP256R1()), "rome")
    for content, found in ((other, "name"), (LINE + other, "2 lines"), ("no key", r"oslo\.pub")):
        (server / "keys/oslo.pub").write_text(content)
        with pytest.raises(RunError, match=found):
            collect_site_keys(server)
    with pytest.raises(RunError, match="no keys"):
        collect_site_keys(server / "keys")


# -- at a site


def test_paths_start_at_the_settings_and_have_defaults(server):
    found = settings_of(server)
    here = server.parent / "berlin"
    assert (found.key, found.sites, found.sealed_only) == (here / "berlin.key", here / "sites.pub", False)
    (here / "node.toml").write_text(
        'name = "berlin"\nkey = "a/b.key"\nsites = "/etc/s.pub"\n[data]\nsource = "x"\n'
    )
    assert [str(path) for path in (settings_of(server).key, settings_of(server).sites)] == [
        f"{here}/a/b.key",
        "/etc/s.pub",
    ]


def test_a_site_trusts_a_list_with_its_own_name_and_key_alone(server):
    listed, site = collect_site_keys(server), settings_of(server)
    with pytest.raises(RunError, match="trifed flower trust"):
        trusted_sites(site)
    listed.write(site.sites)
    assert trusted_sites(site) == listed
    assert trusted_sites(site).get("berlin") == own_key(site).public_key() and listed.get("oslo") is None
    for keys in (
        {name: listed.keys[name] for name in ("paris", "rome")},
        {**listed.keys, "berlin": ec.generate_private_key(ec.SECP256R1()).public_key()},
        {"berln": listed.keys["berlin"], "paris": listed.keys["paris"]},
    ):
        SiteKeys(keys).write(site.sites)
        with pytest.raises(RunError, match="berlin"):
            trusted_sites(site)


def test_a_site_without_its_key_says_so(server):
    site = settings_of(server)
    site.key.unlink()
    with pytest.raises(RunError, match=r"berlin\.key: no such file"):
        own_key(site)
    with pytest.raises(RunError, match=r"berlin\.key"):
        own_key(site.model_copy(update={"key": None}))


def test_changes_between_lists_are_named(server):
    before = collect_site_keys(server)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    now = SiteKeys({"berlin": before.keys["berlin"], "oslo": other, "rome": other})
    assert changes(before, now) == {"oslo": "new", "paris": "removed", "rome": "other key"}
    assert changes(now, now) == {}
