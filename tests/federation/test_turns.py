"""A method whose rounds take turns trains a part of its tensors in each round, and sends that part alone."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from many_clients import check_equal, clients_of, rounds_of, settings
from trifed import make_config, resume, run
from trifed.config.settings import WireSettings
from trifed.data import make_clients
from trifed.federation.client import Client
from trifed.federation.client_privacy import NoPrivacy
from trifed.federation.client_settings import ClientSettings
from trifed.federation.client_update import ClientDataset, train_rounds
from trifed.federation.compression import make_compression
from trifed.federation.context import run_context
from trifed.federation.messages import ENVELOPE, Header, bytes_of_values
from trifed.federation.parts import Part
from trifed.federation.run_folder import RunFolder
from trifed.federation.server import Server
from trifed.federation.training.parallel import AtOnce
from trifed.federation.training.shared_model import build_shared_model
from trifed.federation.upload import RECEIVED, RESIDUAL, ClipAndNoise, upload_pipeline
from trifed.methods import METHODS
from trifed.methods.packing import unpack
from trifed.tasks import TASKS

A = B = 2 * 2 * 4 * 32
"""Numbers in the A, and in the B, of 2 blocks, query and value, rank 4."""
HEAD = 3 * 32 + 3
LAYOUT = (("x.lora_A.weight", (2, 5)), ("x.lora_B.weight", (5, 2)), ("head.bias", (3,)))


def letters(message):
    """The kinds of tensors in a message, by its event."""
    return {name.partition(".lora_")[2][:1] or "head" for name in message if name != ENVELOPE}


def sizes(message):
    return sum(size for name, size in message.items() if name != ENVELOPE)


@pytest.fixture
def sides(toy_values):
    """`sides(bits)`: a server, and its three clients on one model."""

    def make(bits=32, method="rolora"):
        config = make_config(toy_values(method=method, rounds=6, wire={"bits": bits}))
        task = TASKS[config.task]
        data = make_clients(config.data, config.seed, task.roles)
        shared_model = build_shared_model(
            task.load(config.model.name), config.composed_method(), data.label_names, config.seed,
            (config.model, config.adapter, config.training), task,
        )  # fmt: skip
        context = run_context(config, shared_model.layout, shared_model.fingerprint)
        clients = []
        for index, each in enumerate(data.clients):
            dataset = ClientDataset(
                index, each.name, *map(shared_model.encode, (each.train, each.valid, each.test))
            )
            clients.append(Client(context, shared_model, dataset, ClientSettings.of(config, 3), NoPrivacy()))
            clients[-1].start()
        return Server(context, 3, shared_model.start_values), clients

    return make


def play(server, clients, number, who):
    """One round of some clients; their downloads and uploads, as messages and as the server takes them."""
    downloads, uploads, taken = {}, {}, []
    for index in who:
        downloads[index] = server.download(number, index)
        uploads[index] = clients[index].round(number, downloads[index]).upload
        taken.append(server.accept(number, index, uploads[index]))
    server.aggregate(taken)
    return downloads, uploads, taken


# -- training


def test_what_has_no_turn_keeps_its_values_and_its_moments(make_bench):
    shared_model, chosen = make_bench("rolora"), settings(clip_norm=1.0)
    factors = {kind: frozenset(n for n in shared_model.start if f".lora_{kind}." in n) for kind in "AB"}
    clients, before = clients_of(shared_model, [9]), None
    states = None
    for number, frozen in ((1, factors["A"]), (2, factors["B"]), (3, factors["A"])):
        rounds = rounds_of(shared_model, clients, number, states, frozen=frozen)
        rounds = [replace(each, received=None) for each in rounds]
        (done,) = train_rounds(shared_model, rounds, chosen)
        # On a model without gradients of an earlier round, to the bit.
        (again,) = train_rounds(make_bench("rolora"), rounds, chosen)
        assert done.loss == again.loss
        for name, tensor in done.state.tensors.items():
            assert torch.equal(tensor, again.state.tensors[name])
            assert torch.equal(tensor, rounds[0].state.tensors[name]) == (name in frozen), (number, name)
        steps = {name: int(t) for name, t in done.state.moments.items() if name.startswith("step/")}
        if number == 1:
            assert not any(name.removeprefix("step/") in frozen for name in steps)
        else:
            kept = {n: t for n, t in before.moments.items() if n.split("/", 1)[1] in frozen}
            assert kept and all(torch.equal(done.state.moments[name], tensor) for name, tensor in kept.items())
        before, states = done.state, [done.state]
    assert steps["step/head.weight"] == 9 and {steps[f"step/{name}"] for name in factors["A"]} == {3}


def test_a_part_trains_in_stacks_and_threads_as_it_does_alone(make_bench):
    shared_model = make_bench("rolora", adapter={"dropout": 0.2})
    frozen = frozenset(name for name in shared_model.start if ".lora_B." in name)
    rounds = rounds_of(shared_model, clients_of(shared_model, [11, 3, 19]), frozen=frozen)
    alone = [train_rounds(shared_model, [each], settings())[0] for each in rounds]
    for at_once in (AtOnce(clients=3), AtOnce(threads=2, clients=2)):
        together = train_rounds(shared_model, rounds, settings(), at_once)
        check_equal(alone, together)
        assert all(
            torch.equal(t.state.tensors[name], shared_model.start[name]) for t in together for name in frozen
        )
    assert not shared_model.alone


# -- messages


@pytest.mark.parametrize(("bits", "steps"), [(32, 0), (1, 2 * (4 + 2))])
def test_half_of_the_factors_are_sent_in_both_directions(bits, steps, finished):
    """`steps`: bytes of the step sizes, 2 for each tensor of up to 256 numbers; the head has two tensors."""
    done = finished("rolora", rounds=4, wire={"bits": bits})
    half = -(-(A + HEAD) * bits // 8) + steps
    whole = sizes(finished("fedavg-lora", rounds=2, wire={"bits": bits}).events[-4]["down"])
    assert whole == pytest.approx(2 * half - HEAD * bits / 8, abs=8)
    for event in (e for e in done.events if e["event"] == "trained"):
        now, last = ("B", "A") if event["round"] % 2 else ("A", "B")
        assert letters(event["up"]) == {now, "head"} and sizes(event["up"]) == half
        assert letters(event["down"]) == ({last, "head"} if event["round"] > 1 else set())
        assert sizes(event["down"]) == (half if event["round"] > 1 else 0)
    delivered = [event["down"] for event in done.events if event["event"] == "delivered"]
    assert [(letters(down), sizes(down)) for down in delivered] == [({"A", "head"}, half)] * 3
    models = [load_file(done.path / "clients" / name / "adapter_model.safetensors") for name in ("amber", "coral")]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def test_the_average_of_products_is_the_product_of_averages(sides):
    server, clients = sides()
    layout = server.context.compression.layout
    before = server.start
    for number in (1, 2, 3):
        _, _, taken = play(server, clients, number, [0, 1, 2])
        shares = np.array([upload.examples for upload in taken]) / sum(upload.examples for upload in taken)
        sent = [unpack(upload.values.astype(np.float64), layout) for upload in taken]
        mean = unpack(server.state["mean"].astype(np.float64), layout)
        for name, _ in layout:
            if ".lora_A." in name:
                other = name.replace(".lora_A.", ".lora_B.")
                products = sum(share * s[other] @ s[name] for share, s in zip(shares, sent, strict=True))
                np.testing.assert_allclose(mean[other] @ mean[name], products, rtol=1e-5, atol=1e-7)
            still = {1: ".lora_A.", 2: ".lora_B.", 3: ".lora_A."}[number] in name
            assert np.array_equal(mean[name], unpack(before, layout)[name]) == still, (number, name)
        before = server.state["mean"]


@pytest.mark.parametrize("bits", [32, 1])
def test_a_client_that_missed_a_round_gets_everything(bits, sides):
    server, clients = sides(bits)
    context = server.context
    part, whole = sum(context.for_upload(1).sizes.values()), sum(context.compression.sizes.values())
    play(server, clients, 1, [0, 1, 2])
    play(server, clients, 2, [0, 1])
    expected = {index: server.arrives(index) for index in range(3)}
    downloads, _, _ = play(server, clients, 3, [0, 1, 2])
    assert [bytes_of_values(downloads[index]) for index in range(3)] == [part, part, whole]
    for index, values in expected.items():
        assert np.array_equal(clients[index].state.memory[RECEIVED], values)
    if bits == 32:
        assert np.array_equal(expected[0], expected[2])
    downloads, _, _ = play(server, clients, 4, [0, 2])
    assert [bytes_of_values(downloads[index]) for index in (0, 2)] == [part, part]
    # A site that lost its state, or an upload that was refused, is like a round that was missed.
    server.references.forget(0)
    assert bytes_of_values(server.download(5, 0)) == whole
    assert bytes_of_values(server.download(5, 2)) == part


@pytest.mark.parametrize("bits", [32, 1])
def test_a_server_is_loaded_with_what_its_clients_have(bits, sides):
    server, clients = sides(bits)
    play(server, clients, 1, [0, 1, 2])
    play(server, clients, 2, [0, 2])
    loaded = Server(server.context, 3, np.zeros(0, np.float32))
    loaded.load_state_dict(server.state_dict())
    assert loaded.references.accepted == {0: 2, 1: 1, 2: 2}
    for index in range(3):
        assert np.array_equal(loaded.arrives(index), server.arrives(index))
        assert bytes_of_values(loaded.download(3, index)) == bytes_of_values(server.download(3, index))


@pytest.mark.parametrize("bits", [32, 1])
def test_a_run_that_goes_back_has_the_numbers_of_one_that_did_not(bits, toy_values, tmp_path):
    values = toy_values(method="rolora", rounds=5, participation=0.7, wire={"bits": bits})
    done = run(make_config(values), tmp_path / "run")
    copy = shutil.copytree(done.path, tmp_path / "copy")
    resume(copy, from_round=3)
    again, first = (
        [{**event, "seconds": 0} for event in RunFolder.open(path).events() if event["event"] != "resumed"]
        for path in (copy, done.path)
    )
    assert again == first
    down = [sizes(e["down"]) for e in again if e["event"] == "trained" and e["round"] > 1]
    assert len(set(down)) == 2  # some had missed a round
    for name in ("amber", "basil", "coral"):
        mine, theirs = (load_file(p / "clients" / name / "adapter_model.safetensors") for p in (copy, done.path))
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())


# -- the steps of an upload


def test_steps_and_residuals_are_those_of_the_part():
    drawn = []

    def noise(number):
        return lambda count: drawn.append(count) or np.zeros(count)

    compression = make_compression(LAYOUT, WireSettings(bits=1))
    pipeline = upload_pipeline([ClipAndNoise(1.0, 1.0, noise)], compression)
    rng = np.random.default_rng(0)
    values, reference = (rng.standard_normal(23).astype(np.float32) for _ in range(2))
    part = Part.of(LAYOUT, lambda name: ".lora_A." not in name)
    assert part.places.tolist() == [False] * 10 + [True] * 13
    old = {RESIDUAL: np.arange(23, dtype=np.float32), RECEIVED: reference}
    payload, memory = pipeline.encode(Header("upload", "r", "b", 1, 0), values, reference, old, part)
    assert drawn == [13] and bytes_of_values(payload) == 2 + 2 * 2
    assert np.array_equal(memory[RESIDUAL][:10], old[RESIDUAL][:10])
    assert not np.array_equal(memory[RESIDUAL][10:], old[RESIDUAL][10:])
    assert np.array_equal(memory[RECEIVED], reference)


def test_turns_come_in_order_and_start_again():
    method = METHODS["rolora"]
    found = [[n for n, _ in LAYOUT if method.in_turn(number, n)] for number in (1, 2, 3)]
    assert found[0] == found[2] == ["x.lora_B.weight", "head.bias"]
    assert found[1] == ["x.lora_A.weight", "head.bias"]
    assert method.layouts(LAYOUT) == ((LAYOUT[1], LAYOUT[2]), (LAYOUT[0], LAYOUT[2]))
    plain = METHODS["fedavg-lora"]
    assert plain.layouts(LAYOUT) == (LAYOUT,) and all(plain.in_turn(2, name) for name, _ in LAYOUT)
