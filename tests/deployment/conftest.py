"""A federation in one process: a coordinator, and nodes that it reaches through requests and replies alone."""

from __future__ import annotations

import shutil

import pytest

from trifed import make_config
from trifed.deployment.site_process import SiteProcess
from trifed.deployment.site_settings import SiteSettings
from trifed.deployment.site_transport import SiteTransport
from trifed.federation.preparation import quiet
from trifed.federation.run_folder import RunFolder

SITES = ["amber", "basil", "coral"]
LABELS = ["billing", "delivery", "login"]


class InProcess:
    """A channel to nodes in this process. `faults`: by (kind, round, name) what is done with a reply."""

    def __init__(self, nodes, faults=None):
        self.clients = dict(nodes)
        self.faults = faults or {}
        self.asked = []

    def nodes(self):
        return set(self.clients)

    def ask(self, requests, seconds, missing=None):
        answers = {}
        for number, request in requests.items():
            if number not in self.clients:  # it has gone
                continue
            node = self.clients[number]
            key = (request.kind, request.facts.get("round", 0), node.settings.name)
            self.asked.append((*key, dict(request.facts)))
            fault = self.faults.get(key)
            reply = None if fault == "deaf" else node.answer(request)
            if callable(fault):
                reply = fault(reply, request)
            if reply is not None and fault not in ("deaf", "late"):
                answers[number] = reply
        return answers


@pytest.fixture
def federation(site_tables, toy_values):
    """`federation("own-prior", faults={...})`: a coordinator that has not run yet, and its channel."""

    tables = site_tables

    def make(method="own-prior", faults=None, folder="server", nodes=None, deployment=None, **changes):
        changes = {"rounds": 2, **changes}
        changes["data"] = {"labels": LABELS, **changes.get("data", {})}
        values = toy_values(method=method, **changes)
        values["deployment"] = {"clients": 3, "join_seconds": 2, "quorum": 2, **(deployment or {})}
        if nodes is None:
            nodes = {10 - place: node(site) for place, site in enumerate(SITES)}
        channel = InProcess(nodes, faults)
        path = tables / folder
        store = RunFolder.open(path) if path.exists() else RunFolder.create(path)
        store.write_text("config.toml", "")
        return SiteTransport(make_config(values), channel, store, quiet, sleep=lambda seconds: None), channel

    def node(site, **more):
        settings = {
            "name": site,
            "data": {"source": str(tables / f"{site}.csv")},
            "folder": tables / "nodes" / site,
            "gradients": True,
        }
        return SiteProcess(SiteSettings(**{**settings, **more}))

    make.node = node
    return make


@pytest.fixture
def events():
    """`events(coordinator, "trained")`: what it has logged of that kind."""
    return lambda coordinator, kind: [e for e in coordinator.folder.events() if e["event"] == kind]


@pytest.fixture
def keys(site_tables):
    """`keys("amber", "basil")`: a file with their public keys; their own keys are in `keys.folder`."""
    pytest.importorskip("cryptography")
    from trifed.deployment.certificates import write_node_keys
    from trifed.deployment.site_keys import collect_site_keys

    folder = site_tables / "site-keys"
    folder.mkdir()
    for name in (*SITES, "dill"):
        write_node_keys(folder, name)

    def list_of(*names):
        path = folder / f"{'-'.join(names)}.pub"
        collected = folder / "-".join(names) / "keys"
        collected.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(folder / f"{name}.pub", collected)
        collect_site_keys(collected.parent).write(path)
        return path

    list_of.folder = folder
    return list_of


@pytest.fixture
def sealed(federation, site_tables, keys):
    """`sealed("one", settings={"basil": {"may_go_back": True}})`: a coordinator, its channel, nodes by name.

    A second call for the same place makes new processes over the same folders; `sites=FOUR` adds dill, which has
    amber's table. In every test a site sends for one list a round, whatever happens: `sealed.sent` has the lists
    by site, run and round.
    """
    from trifed.deployment.site_sums import digest_of_terms

    sent, known = {}, [*SITES]

    def node(site, place="one", source=None, **more):
        settings = {
            "name": site, "folder": site_tables / place / site, "key": keys.folder / f"{site}.key",
            "sites": keys(*known), **more,
        }  # fmt: skip
        made = federation.node(source or ("amber" if site == "dill" else site), **settings)
        answer = made.answer

        def noted(request):
            reply = answer(request)
            if "sum" in reply.parts:
                key = (place, site, request.facts["run"], request.facts["round"])
                sent.setdefault(key, set()).add(digest_of_terms(request.parts["terms"]))
            return reply

        made.answer = noted
        return made

    def make(place="one", method="fedavg-lora", settings=None, faults=None, server=None, sites=SITES, **changes):
        known[:] = sites
        nodes = {site: node(site, place, **(settings or {}).get(site, {})) for site in sites}
        changes = {
            "rounds": 3,
            **changes,
            "deployment": {"quorum": 1, "clients": len(sites), **changes.pop("deployment", {})},
            "sealing": {"on": True, **changes.pop("sealing", {})},
        }
        coordinator, channel = federation(
            method, faults, server or f"{place}-server", dict(enumerate(nodes.values())), **changes
        )
        return coordinator, channel, nodes

    make.node, make.sent = node, sent
    yield make
    assert all(len(lists) == 1 for lists in sent.values()), sent
