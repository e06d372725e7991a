"""A federation in one process: a coordinator, and nodes that it reaches through requests and replies alone."""

from __future__ import annotations

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
