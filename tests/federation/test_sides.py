"""Server and clients that share nothing but messages reach what the simulator reaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trifed import make_config
from trifed.common.errors import MessageError
from trifed.data import make_clients
from trifed.federation.base_server import layout_of
from trifed.federation.client import Client
from trifed.federation.client_privacy import NoPrivacy
from trifed.federation.client_settings import AcceptanceLimits, ClientSettings
from trifed.federation.client_update import ClientDataset
from trifed.federation.context import run_context
from trifed.federation.messages import BAD_REPLY, Rejected
from trifed.federation.preparation import quiet
from trifed.federation.run_folder import RunFolder
from trifed.federation.server import References, Server
from trifed.federation.shared_projections import adapted_layout, receive_shared_projections
from trifed.federation.simulation import Simulation
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

ROUNDS = 2


def parts(config):
    """A workbench and the clients on it, made anew, as every process would."""
    task = TASKS[config.task]
    data = make_clients(config.data, config.seed, task.roles)
    settings = (config.model, config.adapter, config.training)
    shared_model = build_shared_model(
        task.load(config.model.name), METHODS[config.method.name], data.label_names, config.seed, settings, task
    )
    clients = [
        ClientDataset(
            i, c.name, shared_model.encode(c.train), shared_model.encode(c.valid), shared_model.encode(c.test)
        )
        for i, c in enumerate(data.clients)
    ]
    return data, shared_model, clients


def site_of(config, index):
    data, shared_model, clients = parts(config)
    context = run_context(config, shared_model.exchanged, shared_model.fingerprint)
    settings = ClientSettings.of(config, len(data.label_names))
    return Client(context, shared_model, clients[index], settings, NoPrivacy())


def apart(config):
    """The same run with a workbench for each client, the server knowing none of them."""
    sites = [site_of(config, index) for index in range(3)]
    first = sites[0]
    server = Server(first.context, len(sites), first.shared_model.exchanged_start)
    if first.context.method.shared_projections:
        layers = adapted_layout(first.shared_model)
        projections = server.make_shared_projections(
            [server.read_gradient(site.dataset.index, site.gradient(), layers, site.examples) for site in sites]
        )
        for site in sites:
            index = site.dataset.index
            receive_shared_projections(
                site.shared_model,
                site.context,
                index,
                server.shared_projections_for(index),
                layout_of(projections),
            )
        np.testing.assert_array_equal(server.start, first.shared_model.start_values)
    for site in sites:
        site.start()
    summaries = {site.dataset.index: site.summary() for site in sites}
    server.open({c: server.read_summary(c, payload) for c, payload in summaries.items() if payload})
    for number in range(1, ROUNDS + 1):
        uploads = []
        for site in sites:
            index = site.dataset.index
            done = site.round(number, server.download(number, index))
            uploads += [server.accept(number, index, done.upload)] if done.upload else []
        server.aggregate(uploads)
    return server, sites


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("own-prior", {}), ("ce-lora", {}), ("ce-lora", {"wire": {"bits": 4}}), ("fed-sb", {}), ("local", {}),
        ("fedavg-full", {}), ("pfedme-lora", {"wire": {"bits": 8}}), ("co-lora-like", {}), ("rolora", {}),
        ("fedrod-lora", {"wire": {"bits": 2}}), ("fedex-lora", {"wire": {"bits": 1}}),
        ("fedalt", {"wire": {"bits": 1}}), ("feddpa", {"wire": {"bits": 1}}),
    ],
)  # fmt: skip
def test_only_messages_pass_between_the_sides(method, changes, toy_values, tmp_path):
    changes = {**changes, "training": {"clients_at_once": 1}}  # more at once differ by rounding errors
    config = make_config(toy_values(method=method, rounds=ROUNDS, **changes))
    data, shared_model, clients = parts(config)
    together = Simulation(config, data, clients, shared_model, RunFolder.create(tmp_path / "run"), quiet)
    together.run()
    server, sites = apart(config)
    assert set(server.state) == set(together.server.state)
    for name, array in server.state.items():
        np.testing.assert_array_equal(array, together.server.state[name], err_msg=name)
    for site, other in zip(sites, together.clients, strict=True):
        payload = server.download(ROUNDS + 1, site.dataset.index)
        arrived = None if payload is None else site.take(ROUNDS + 1, payload)
        final = together.final_model(site.dataset.index).tensors
        for name, tensor in site.tensors(site.context.method.evaluated_model, arrived).items():
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
        rejected = server.accept(number, client, upload)
        assert isinstance(rejected, Rejected) and rejected.code == BAD_REPLY


@pytest.mark.parametrize(("worse_by", "kept"), [(None, False), (0.1, True), (1e6, False)])
def test_what_is_worse_for_its_own_data_is_not_taken(worse_by, kept, toy_values):
    """A client that has trained is sent a core of noise; it goes on as if nothing had come, and says so."""
    config = make_config(toy_values(method="fedavg-lora", rounds=4, training={"epochs": 4}))
    site, other = (site_of(config, 0) for _ in range(2))
    for one in (site, other):
        one.start()
        one.round(1, None)
    noise = 3 * np.random.default_rng(0).standard_normal(site.shared_model.start_values.shape).astype(np.float32)
    header = site.context.header("download", 2, 0)
    done = site.round(
        2, site.context.compression.encode(header, noise, site.reference), AcceptanceLimits(worse_by=worse_by)
    )
    assert done.rejected_download is kept
    undisturbed = other.round(2, None)
    assert (done.loss == undisturbed.loss) is kept


def test_others_get_the_share_that_a_client_allows_them(toy_values):
    """θ ← θ_own + s (θ_received − θ_own): with s = 0 its own, with 1 what came, with ¼ a quarter of the way."""
    config = make_config(toy_values(method="own-prior", rounds=ROUNDS, wire={"bits": 32}))
    site = site_of(config, 0)
    site.start()
    site.round(1, None)
    own = site.shared_model.pack(site.state.tensors)
    came = np.random.default_rng(0).standard_normal(len(own)).astype(np.float32)
    payload = site.context.compression.encode(
        site.context.header("download", 2, site.dataset.index), came, site.reference
    )
    taken = {share: site.take(2, payload, AcceptanceLimits(others_at_most=share)) for share in (0.0, 0.25, 1.0)}
    np.testing.assert_allclose(taken[0.0], own, atol=1e-6)
    np.testing.assert_allclose(taken[0.25], 0.75 * own + 0.25 * came, atol=1e-6)
    np.testing.assert_array_equal(taken[1.0], came)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("own-prior", {"wire": {"bits": 4}}), ("ce-lora", {}), ("fed-sb", {}),
        ("fedex-lora", {"wire": {"bits": 4}}), ("fedalt", {}),
    ],
)  # fmt: skip
def test_a_server_is_loaded_from_its_arrays(method, changes, toy_values):
    config = make_config(toy_values(method=method, rounds=ROUNDS, **changes))
    server, _ = apart(config)
    loaded = Server(server.context, server.clients, np.zeros(0, np.float32))
    loaded.load_state_dict(server.state_dict())
    for client in range(server.clients):
        np.testing.assert_array_equal(loaded.arrives(client), server.arrives(client))
    first, again = server.state_dict(), loaded.state_dict()
    assert set(first) == set(again)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_a_download_is_the_reference_once_the_upload_shows_that_it_arrived():
    references = References()
    references.pending[0] = np.ones(2, np.float32)
    assert 0 not in references.confirmed
    references.confirm(0)
    references.confirm(1)
    assert references.confirmed.keys() == {0} and not references.pending
    references.forget(0)
    assert not references.confirmed
