"""The rounds: same seed, same numbers; who takes part; what is sent, to the byte."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trifed import make_config, run
from trifed.federation.messages import ENVELOPE, Header, encode_values
from trifed.federation.run_folder import RunFolder

METHODS = ["ce-lora", "fedavg-lora", "local", "fed-sb", "fedavg-full", "pfedme-lora", "own-prior"]
"""Every kind of adapter, of state, and of what is sent."""
CORES = 2 * 2 * 4 * 4
"""Numbers in the cores of 2 blocks, query and value, rank 4."""

LORA = 2 * 2 * 2 * 4 * 32 + 3 * 32 + 3
"""Numbers in A, B and the head."""


def timeless(events):
    return [{key: value for key, value in event.items() if key != "seconds"} for event in events]


def lasting(summary):
    return {key: value for key, value in summary.items() if key not in ("seconds", "seconds_total", "name")}


def trained(events, client=None):
    return [e for e in events if e["event"] == "trained" and client in (None, e["client"])]


def read_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label", "site"])
        writer.writeheader()
        writer.writerows(rows)
    return path


# -- the same seed


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_events_and_the_same_summary(method, finished, toy_values, tmp_path):
    first = finished(method)
    again = run(make_config(toy_values(method=method, name="again")), tmp_path / "again")
    assert timeless(first.events) == timeless(RunFolder.open(again.path).events())
    assert lasting(first.summary) == lasting(again.summary)
    for name in ("split.json", "predictions.json"):
        assert (first.path / name).read_bytes() == (again.path / name).read_bytes()
    other = finished(method, seed=1)
    assert timeless(first.events) != timeless(other.events)
    assert trained(first.events)[0]["loss"] != trained(other.events)[0]["loss"]


def test_the_state_of_torchs_generator_does_not_matter_nor_change(finished, toy_values, tmp_path):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = run(make_config(toy_values(method="ce-lora")), tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    assert timeless(RunFolder.open(again.path).events()) == timeless(finished("ce-lora").events)


def test_training_gets_somewhere(finished):
    long = finished("fedavg-lora", rounds=6, training={"epochs": 3}, evaluate_every=6)
    losses = [point["training_loss"] for point in long.summary["curve"] if point["training_loss"]]
    start = trained(long.events)[0]["loss"]
    assert losses[-1] < 0.8 * start


def test_the_listener_hears_what_the_log_holds(finished):
    done = finished("ce-lora")
    logged = {"started", "scores", "summary", "trained", "delivered", "finished"}
    heard = [e for e in done.told if e["event"] in logged]
    assert [e["event"] for e in heard] == [e["event"] for e in done.events]
    assert {e["event"] for e in done.events} == logged


# -- what is exchanged


def test_a_global_average_is_the_same_model_for_all(finished):
    done = finished("fedavg-lora")
    heads = [load_file(done.path / "clients" / name / "head.safetensors") for name in ("amber", "basil", "coral")]
    for other in heads[1:]:
        assert all(torch.equal(heads[0][name], other[name]) for name in heads[0])
    weights = load_file(done.path / "matrices" / "round-0003.safetensors")["weights"].numpy()
    sizes = np.array([len_of(done, name) for name in ("amber", "basil", "coral")])
    np.testing.assert_allclose(weights, np.tile(sizes / sizes.sum(), (3, 1)))


def len_of(done, client):
    """A client's training examples, as split.json says them."""
    split = json.loads((done.path / "split.json").read_text(encoding="utf-8"))
    (row,) = [row for row in split["clients"] if row["name"] == client]
    return row["train"] if isinstance(row["train"], int) else sum(row["train"].values())


def test_personalised_averages_are_not_the_same_for_all(finished):
    done = finished("ce-lora")
    cores = [load_file(done.path / "clients" / name / "adapter_model.safetensors") for name in ("amber", "basil")]
    core = next(name for name in cores[0] if ".lora_C." in name)
    assert not torch.equal(cores[0][core], cores[1][core])
    matrices = load_file(done.path / "matrices" / "round-0003.safetensors")
    assert set(matrices) == {"weights", "similarity_data", "similarity_model"}
    np.testing.assert_allclose(matrices["weights"].sum(1).numpy(), 1.0)


@pytest.mark.parametrize(("method", "numbers"), [("ce-lora", CORES), ("fedavg-lora", LORA)])
def test_all_bytes_in_closed_form(method, numbers, finished):
    # n clients, R rounds: everybody uploads R times, and downloads before rounds 2 … R and once after the last.
    done = finished(method)
    header = Header("upload", done.config.run_id(), "0" * 16, 1, 0, 24)
    envelope = len(encode_values(header, np.zeros(numbers, np.float32))) - 4 * numbers
    summaries = sum(sum(e["up"].values()) for e in done.events if e["event"] == "summary")
    told = done.summary["bytes"]
    assert told["up"] == 3 * 3 * (4 * numbers + envelope) + summaries
    assert told["total"] - told["up"] - 3 * 3 * 4 * numbers == pytest.approx(3 * 3 * envelope, abs=3 * 3 * 8)
    assert told["down"] == told["total"] - told["up"]
    assert told["summaries"] == summaries and (summaries > 0) == (method == "ce-lora")
    assert told["per_upload"] == 4 * numbers + envelope
    assert told["bits"] == 32 and told["fedavg_lora_would_send"] == told["fedavg_lora_would_send_at_32_bits"]
    assert told["fedavg_lora_would_send"] == pytest.approx(2 * 3 * 3 * (4 * LORA + envelope), rel=0.01)
    assert told["times_fewer"] == told["times_fewer_at_32_bits"] == told["fedavg_lora_would_send"] / told["total"]
    for event in trained(done.events):
        assert event["up"][ENVELOPE] == envelope
        assert sum(size for name, size in event["up"].items() if name != ENVELOPE) == 4 * numbers
    per_client = done.summary["clients"]
    assert sum(client["bytes_up"] + client["bytes_down"] for client in per_client) == told["total"]


def test_plain_lora_is_counted_at_the_runs_own_bits_and_at_32(finished):
    """As many bytes as a run of `fedavg-lora` sends with these bits, but for headers and two bytes a tensor."""
    own = finished("own-prior", wire={"bits": 1}).summary["bytes"]
    plain, full = (finished("fedavg-lora", wire={"bits": bits}).summary["bytes"] for bits in (1, 32))
    messages = 2 * 3 * 3
    assert (own["bits"], plain["bits"], full["bits"]) == (1, 1, 32)
    assert own["fedavg_lora_would_send"] / messages == pytest.approx(plain["per_upload"], abs=2 * 10)
    assert own["fedavg_lora_would_send_at_32_bits"] / messages == pytest.approx(full["per_upload"], abs=64)
    assert own["times_fewer"] == own["fedavg_lora_would_send"] / own["total"]
    assert own["times_fewer_at_32_bits"] == own["fedavg_lora_would_send_at_32_bits"] / own["total"]
    assert plain["times_fewer"] == pytest.approx(messages * plain["per_upload"] / plain["total"], rel=0.1)


def test_nothing_is_received_before_the_first_round_and_by_everybody_after_the_last(finished):
    events = finished("ce-lora").events
    assert all(bool(e["down"]) == (e["round"] > 1) for e in trained(events))
    assert [e["client"] for e in events if e["event"] == "delivered"] == ["amber", "basil", "coral"]


def test_a_method_without_uploads_sends_nothing(finished):
    done = finished("local")
    assert all(e["up"] == {} and e["down"] == {} for e in trained(done.events))
    told = done.summary["bytes"]
    assert told["total"] == told["per_upload"] == told["summaries"] == 0 and told["times_fewer"] is None
    assert not (done.path / "matrices").exists()


def test_the_core_of_the_exchange_matters(finished, toy_values, tmp_path):
    # With a self-weight of 1 everybody gets its own core back, and ce-lora is training alone with three factors.
    alone = run(make_config(toy_values(method={"name": "ce-lora", "self_weight": 1.0})), tmp_path / "alone")
    first, second = (
        [(e["client"], e["loss"]) for e in trained(events) if e["round"] == number]
        for events, number in ((RunFolder.open(alone.path).events(), 1), (finished("ce-lora").events, 1))
    )
    assert first == second
    late = [
        [e["loss"] for e in trained(events) if e["round"] == 3]
        for events in (RunFolder.open(alone.path).events(), finished("ce-lora").events)
    ]
    assert all(a != b for a, b in zip(*late, strict=True))


# -- who takes part


def test_half_of_the_clients_take_part_and_only_they_are_counted(finished, toy_values, tmp_path):
    done = finished("ce-lora", participation=0.5, rounds=5)
    drawn = [[e["client"] for e in trained(done.events) if e["round"] == number] for number in range(1, 6)]
    assert all(len(names) == 2 and names == sorted(names) for names in drawn)  # round(0.5 * 3) = 2
    assert len({tuple(names) for names in drawn}) > 1
    for client in done.summary["clients"]:
        mine = trained(done.events, client["name"])
        assert client["rounds"] == len(mine) == sum(client["name"] in names for names in drawn)
        sent = sum(sum(e["up"].values()) for e in done.events if e.get("client") == client["name"] and "up" in e)
        assert client["bytes_up"] == sent
    uploads = sum(size for e in trained(done.events) for name, size in e["up"].items() if name != ENVELOPE)
    assert uploads == 5 * 2 * 4 * CORES
    other = finished("fedavg-lora", participation=0.5, rounds=5)
    assert [(e["round"], e["client"]) for e in trained(other.events)] == [
        (e["round"], e["client"]) for e in trained(done.events)
    ]  # the draw belongs to the seed, not to the method
    again = run(make_config(toy_values(method="ce-lora", participation=0.5, rounds=5)), tmp_path / "again")
    assert timeless(RunFolder.open(again.path).events()) == timeless(done.events)


def test_at_least_one_client_takes_part(finished):
    done = finished("fedavg-lora", participation=0.01, rounds=2)
    assert [e["round"] for e in trained(done.events)] == [1, 2]


def test_whoever_trains_alone_is_not_touched_by_others(finished, toy_values, toy_table, tmp_path):
    # Coral's labels move one on. Nobody else's rows change, and each client is cut and seeded by its own place.
    names = ["billing", "delivery", "login"]
    rows = read_rows(toy_table)
    for row in rows:
        if row["site"] == "coral":
            row["label"] = names[(names.index(row["label"]) + 1) % 3]
    changed = write_rows(tmp_path / "changed.csv", rows)
    alone = {"clients_at_once": 1}  # beside other lengths, numbers differ by rounding errors
    config = make_config(toy_values(method="local", data={"source": str(changed)}, training=alone))
    done = run(config, tmp_path / "run")

    def of(events, client):
        return [e for e in timeless(events) if e.get("client") == client]

    before, after = finished("local", training=alone).events, RunFolder.open(done.path).events()
    assert of(before, "amber") == of(after, "amber") and of(before, "basil") == of(after, "basil")
    assert of(before, "coral") != of(after, "coral")


@pytest.mark.parametrize("method", METHODS)
def test_clients_without_examples_or_with_one_class_stand_beside_the_others(
    method, toy_values, toy_table, tmp_path
):
    rows = read_rows(toy_table)
    rows += [{"text": f"parcel word{i:03d}", "label": "delivery", "site": "dune"} for i in range(12)]
    rows += [{"text": f"refund word{i:03d}", "label": "billing", "site": "empty"} for i in range(3)]
    table = write_rows(tmp_path / "table.csv", rows)
    data = {"source": str(table), "allow_single_class": True, "allow_empty_clients": True}
    done = run(make_config(toy_values(method=method, data=data, rounds=2, controls=True)), tmp_path / "run")
    clients = {client["name"]: client for client in done.summary["clients"]}
    assert list(clients) == ["amber", "basil", "coral", "dune", "empty"]
    assert clients["empty"]["rounds"] == 0 and clients["empty"]["now"]["accuracy"] is None
    assert clients["empty"]["now"]["examples"] == 0 and clients["empty"]["bytes_up"] >= 0
    assert clients["dune"]["rounds"] == 2 and clients["dune"]["now"]["accuracy"] is not None
    known = [c["now"]["accuracy"] for c in clients.values() if c["now"]["accuracy"] is not None]
    assert done.summary["accuracy"]["mean"] == pytest.approx(np.mean(known)) and len(known) == 4
    assert done.summary["controls"]["majority"]["clients"]["dune"] == 1.0
    assert done.summary["controls"]["probe-alone"]["clients"]["empty"] is None
    assert done.client("empty").predict(["refund word001"])[0] in {"billing", "delivery", "login"}


# -- when it is measured


def test_evaluating_seldom_changes_no_numbers(finished):
    often, seldom = finished("ce-lora"), finished("ce-lora", evaluate_every=2)
    assert [e["round"] for e in seldom.events if e["event"] == "scores"] == sorted([0, 2, 3, 3] * 3)
    kept = [e for e in timeless(often.events) if e["event"] != "scores" or e["round"] in (0, 2, 3)]
    sent_equal = [{k: v for k, v in e.items() if k not in ("up", "down")} for e in kept]
    # The run's id, which travels in every envelope, is another one; its length is the same.
    assert sent_equal == [{k: v for k, v in e.items() if k not in ("up", "down")} for e in timeless(seldom.events)]
    assert sorted(p.name for p in (seldom.path / "matrices").iterdir()) == [
        "round-0002.safetensors",
        "round-0003.safetensors",
    ]


@pytest.mark.parametrize(("method", "evaluated_model"), [("ce-lora", "trained"), ("fedavg-lora", "received")])
def test_the_last_round_is_scored_before_and_after_the_exchange(method, evaluated_model, finished):
    done = finished(method)
    stages = {(e["round"], e["stage"]) for e in done.events if e["event"] == "scores"}
    assert stages == {(0, "start"), (1, evaluated_model), (2, evaluated_model), (3, "trained"), (3, "received")}
    assert done.summary["accuracy"] == done.summary[f"accuracy_{evaluated_model}"]
    assert done.summary["accuracy"]["round"] == 3


def test_the_interpolated_model_lies_between_the_trained_and_the_received_one(toy_values, tmp_path):
    kept = {}
    for share in (0.0, 1.0, 0.75):
        parts = {"calibrate": False, "interpolate": share}
        values = toy_values(method="own-prior", adapter={"rank": 4}, personalization=parts)
        done = run(make_config(values), tmp_path / str(share))
        stages = {(e["round"], e["stage"]) for e in RunFolder(done.path).events() if e["event"] == "scores"}
        last = {(3, name) for name in ("trained", "received", "between")}
        assert stages == {(0, "start"), (1, "between"), (2, "between"), *last}
        kept[share] = [
            tensor for folder in sorted((done.path / "clients").iterdir()) for tensor in weights_of(folder)
        ]
    assert any(not torch.equal(one, other) for one, other in zip(kept[0.0], kept[1.0], strict=True))
    for trained, received, between in zip(kept[0.0], kept[1.0], kept[0.75], strict=True):
        torch.testing.assert_close(between, trained / 4 + 3 * received / 4, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora"])
def test_what_a_client_receives_last_counts_where_it_is_used(method, finished):
    done = finished(method)
    assert done.summary["curve"][-1]["bytes"] == done.summary["bytes"]["total"]


def weights_of(folder):
    """All of a client's tensors, in a fixed order."""
    files = sorted(folder.rglob("*.safetensors"))
    return [tensor for file in files for _, tensor in sorted(load_file(file).items())]


@pytest.mark.parametrize(("method", "models"), [("fedavg-lora", 1), ("ce-lora", 3), ("local", 3)])
def test_a_separate_test_set_scores_every_model(method, models, toy_values, toy_rows, tmp_path):
    test = toy_rows(tmp_path / "test.csv", rows_a_site=20, seed=5)
    done = run(make_config(toy_values(method=method, rounds=1, data={"test": str(test)})), tmp_path / "run")
    told = done.summary["global_test"]
    assert told["models"] == models and told["examples"] == 60
    classifier = done.client("basil")
    rows = read_rows(test)
    predicted = classifier.predict([row["text"] for row in rows])
    right = np.mean([a == row["label"] for a, row in zip(predicted, rows, strict=True)])
    assert told["worst"] - 1e-9 <= right <= told["best"] + 1e-9
    if models == 1:
        assert told["worst"] == told["best"] == pytest.approx(right)


# -- few bits a number


@pytest.mark.parametrize("bits", [1, 4])
def test_bytes_of_few_bits(bits, finished):
    """Codes, and two bytes for each block of at most 256 numbers: each factor is one, the head two."""
    done = finished("fedavg-lora", wire={"bits": bits})
    codes, steps = -(-LORA * bits // 8), 2 * (2 * 2 * 2 + 2)
    for event in trained(done.events):
        assert sum(event["up"].values()) - event["up"][ENVELOPE] == codes + steps


def test_what_is_scored_is_what_each_client_received(finished):
    """The last download is rounded too: the model that is kept is the one that was scored."""
    done = finished("fedavg-lora", wire={"bits": 1})
    kept = json.loads((done.path / "predictions.json").read_text())
    for client in done.summary["clients"]:
        right = np.array(kept["model"][client["name"]]) == np.array(kept["labels"][client["name"]])
        assert right.mean() == pytest.approx(client["now"]["accuracy"])


def test_eight_bits_end_where_thirty_two_end(finished):
    """With error feedback eight bits lose next to nothing: the same accuracy within one test row in ten."""
    one, other = (
        finished("fedavg-lora", **changes).summary["accuracy"]["mean"] for changes in ({}, {"wire": {"bits": 8}})
    )
    assert other == pytest.approx(one, abs=0.1)
