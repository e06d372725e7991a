"""Server and clients that share nothing but messages reach what the simulator reaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trifed import make_config
from trifed.data import make_clients
from trifed.engines.simulator import Simulation
from trifed.errors import MessageError
from trifed.federation.client import Client
from trifed.federation.server import Server, layout_of
from trifed.federation.site import Limits, Site, adapted_layout, take_frames
from trifed.federation.store import RunFolder
from trifed.federation.terms import terms_of
from trifed.federation.workbench import build_workbench
from trifed.methods import METHODS
from trifed.runner import quiet
from trifed.tasks import TASKS

ROUNDS = 2


def parts(config):
    """A workbench and the clients on it, made anew, as every process would."""
    task = TASKS[config.task]
    data = make_clients(config.data, config.seed, task.roles)
    settings = (config.model, config.adapter, config.training)
    bench = build_workbench(
        task.load(config.model.name), METHODS[config.method.name], data.label_names, config.seed, settings, task
    )
    clients = [
        Client(i, c.name, bench.encode(c.train), bench.encode(c.valid), bench.encode(c.test))
        for i, c in enumerate(data.clients)
    ]
    return data, bench, clients


def site_of(config, index):
    data, bench, clients = parts(config)
    terms = terms_of(config, bench.layout, bench.fingerprint)
    return Site(terms, bench, clients[index], config.training, config.seed, config.rounds, len(data.label_names))


def apart(config):
    """The same run with a workbench for each client, the server knowing none of them."""
    sites = [site_of(config, index) for index in range(3)]
    first = sites[0]
    server = Server(first.terms, len(sites), first.bench.start_values)
    if first.terms.method.frames:
        layers = adapted_layout(first.bench)
        frames = server.frames({site.client.index: site.gradient() for site in sites}, layers)
        for site in sites:
            index = site.client.index
            take_frames(site.bench, site.terms, index, server.frames_for(index, frames), layout_of(frames))
        server.start = first.bench.start_values
    for site in sites:
        site.start()
    summaries = {site.client.index: site.summary() for site in sites}
    server.open({client: payload for client, payload in summaries.items() if payload})
    for number in range(1, ROUNDS + 1):
        uploads = []
        for site in sites:
            index = site.client.index
            done = site.round(number, server.download(number, index))
            uploads += [server.accept(number, index, done.upload)] if done.upload else []
        server.aggregate(uploads)
    return server, sites


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("own-prior", {}), ("ce-lora", {}), ("ce-lora", {"wire": {"bits": 4}}), ("fed-sb", {}), ("local", {}),
        ("fedavg-full", {}), ("pfedme-lora", {"wire": {"bits": 8}}),
    ],
)  # fmt: skip
def test_only_messages_pass_between_the_sides(method, changes, toy_values, tmp_path):
    config = make_config(toy_values(method=method, rounds=ROUNDS, **changes))
    data, bench, clients = parts(config)
    together = Simulation(config, data, clients, bench, RunFolder.create(tmp_path / "run"), quiet)
    together.run()
    server, sites = apart(config)
    assert set(server.state) == set(together.server.state)
    for name, array in server.state.items():
        np.testing.assert_array_equal(array, together.server.state[name], err_msg=name)
    for site, other in zip(sites, together.sites, strict=True):
        payload = server.download(ROUNDS + 1, site.client.index)
        arrived = None if payload is None else site.take(ROUNDS + 1, payload)
        final = together.final_tensors(site.client.index)
        for name, tensor in site.tensors(site.terms.method.scored, arrived).items():
            assert torch.equal(tensor, final[name]), name
        assert site.state.steps == other.state.steps


def test_a_message_of_another_round_or_client_changes_nothing(toy_values):
    config = make_config(toy_values(method="own-prior", rounds=ROUNDS))
    server, sites = apart(config)
    site = sites[0]
    before = site.state
    mine, others = server.download(ROUNDS + 1, 0), server.download(ROUNDS + 1, 1)
    for number, payload in ((ROUNDS + 2, mine), (ROUNDS + 1, others)):
        with pytest.raises(MessageError, match="it is refused"):
            site.round(number, payload)
        assert site.state is before
    upload = site.round(ROUNDS + 1, mine).upload
    for number, client in ((ROUNDS + 1, 1), (ROUNDS, 0)):
        with pytest.raises(MessageError, match="it is refused"):
            server.accept(number, client, upload)


@pytest.mark.parametrize(("worse_by", "kept"), [(None, False), (0.1, True), (1e6, False)])
def test_what_is_worse_for_its_own_data_is_not_taken(worse_by, kept, toy_values):
    """A client that has trained is sent a core of noise; it goes on as if nothing had come, and says so."""
    config = make_config(toy_values(method="fedavg-lora", rounds=4, training={"epochs": 4}))
    site, other = (site_of(config, 0) for _ in range(2))
    for one in (site, other):
        one.start()
        one.round(1, None)
    noise = 3 * np.random.default_rng(0).standard_normal(site.bench.start_values.shape).astype(np.float32)
    header = site.terms.header("download", 2, 0)
    done = site.round(2, site.terms.wire.encode(header, noise, site.known), Limits(worse_by=worse_by))
    assert done.kept_own is kept
    undisturbed = other.round(2, None)
    assert (done.loss == undisturbed.loss) is kept


def test_others_get_the_share_that_a_client_allows_them(toy_values):
    """θ ← θ_own + s (θ_received − θ_own): with s = 0 its own, with 1 what came, with ¼ a quarter of the way."""
    config = make_config(toy_values(method="own-prior", rounds=ROUNDS, wire={"bits": 32}))
    site = site_of(config, 0)
    site.start()
    site.round(1, None)
    own = site.bench.pack(site.state.tensors)
    came = np.random.default_rng(0).standard_normal(len(own)).astype(np.float32)
    payload = site.terms.wire.encode(site.terms.header("download", 2, site.client.index), came, site.known)
    taken = {share: site.take(2, payload, Limits(others_at_most=share)) for share in (0.0, 0.25, 1.0)}
    np.testing.assert_allclose(taken[0.0], own, atol=1e-6)
    np.testing.assert_allclose(taken[0.25], 0.75 * own + 0.25 * came, atol=1e-6)
    np.testing.assert_array_equal(taken[1.0], came)
