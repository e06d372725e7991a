"""Views of a round: which uploads an observation is made of, and what planted members and labels show in each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from trifed import make_config
from trifed.attacks.inference import infer_labels, labels_from
from trifed.attacks.membership import cosines, infer_from_updates, pick_examples, score_rounds
from trifed.attacks.plan import Plan
from trifed.attacks.target import target_client, train_target
from trifed.attacks.views import (
    behind,
    clients_of_round,
    colluding_against,
    left_behind,
    next_rounds,
    possible_views,
    summed_targets,
    view_of,
)
from trifed.common.errors import RunError
from trifed.federation.sealed.numbers import of_each
from trifed.methods.packing import pack, unpack

PLAN = Plan(batches=(1, 4), trials=2, clients=8, members=16, observed=2)


def quiet(text):
    pass


@pytest.fixture(scope="module")
def target(toy_values):
    """The first of three clients, after a round."""
    return train_target(make_config(toy_values(method="fedavg-lora")), 1, None)


def test_the_clients_behind_each_view():
    assert behind("single", [1, 4, 6], 4) == [4]
    assert behind("sum", [1, 4, 6], 4) == [1, 4, 6]
    assert behind("others", [1, 4, 6], 4) == [1, 4]  # without the attacker, who is the next one
    assert behind("others", [1, 4, 6], 6) == [4, 6]


def test_colluding_sites_leave_two_clients_at_the_least():
    assert behind("colluding", [1, 4, 6, 7, 9], 6) == [4, 6]  # the others follow it in the list
    assert behind("colluding", [1, 4, 6], 4) == behind("others", [1, 4, 6], 4)
    assert colluding_against([1, 4, 6, 7], 6, 1) == [7] and colluding_against([1, 4, 6, 7], 6, 9) == [7, 1]
    assert colluding_against([1, 4], 4) == []


def planted(rng, clients):
    return {client: {"a": rng.normal(size=(30, 20)).astype(np.float32)} for client in clients}


@pytest.mark.parametrize("view", ["sum", "others", "colluding"])
def test_sums_before_and_after_a_departure_give_one_clients_part_if_the_others_sent_the_same(view):
    """The attack finds it exactly; and numbers that are trained anew, as in a sealed run, hide it."""
    rng, clients = np.random.default_rng(0), [1, 4, 6, 7, 9]
    before = planted(rng, clients)
    again = {client: before[client] for client in clients if client != 4}
    np.testing.assert_allclose(left_behind(view, before, again, clients, 4)["a"], before[4]["a"], atol=1e-5)
    found = left_behind(view, before, planted(rng, clients), clients, 4)["a"]
    others = len(behind(view, clients, 4)) - 1
    cosine = np.vdot(found, before[4]["a"]) / np.linalg.norm(found) / np.linalg.norm(before[4]["a"])
    assert cosine == pytest.approx(1 / np.sqrt(1 + 2 * others), abs=0.08)  # all others' parts are in it twice


def test_the_attack_on_a_departure_tells_members_as_a_single_upload_does_if_the_others_sent_the_same(target):
    """And in a run, where the others train again, it is another direction, of another score."""
    plan, clients = replace(PLAN, observed=2), [0, 1, 2]
    scores = score_rounds(target, plan, quiet)
    assert {view for _, view in scores.departures} == {"sum", "others"}
    single = target.update(np.arange(len(target.client.train)))
    parts = {client: target_client(target.simulation, client, 1) for client in clients}
    sent = {client: part.update(np.arange(len(part.client.train))) for client, part in parts.items()}
    same = left_behind("sum", sent, sent, clients, 0)
    examples = pick_examples(target.client.train, plan, 0)
    one, other = cosines(target, target.assumed_tensors("factors"), [single, same], examples)
    np.testing.assert_allclose(one, other, atol=1e-4)
    trained_anew = scores.departures["factors", "sum"][0][0][0]
    assert np.abs(trained_anew - one).max() > 0.01


def test_of_two_clients_the_sum_less_ones_own_part_is_the_other_upload():
    rng = np.random.default_rng(0)
    changes = {client: {"a": rng.normal(size=(3, 2)).astype(np.float32)} for client in (2, 5)}
    for client in changes:
        assert np.array_equal(view_of("others", changes, [2, 5], client)["a"], changes[client]["a"])
        assert np.allclose(view_of("sum", changes, [2, 5], client)["a"], (changes[2]["a"] + changes[5]["a"]) / 2)


def test_a_sum_is_the_mean_of_what_its_clients_send(target):
    clients = clients_of_round(target)
    assert clients == [0, 1, 2] and possible_views(target, clients) == ("single", "sum", "others")
    total, others = summed_targets(target, clients)
    assert (total.size, others.size) == (3, 2)
    assert [part.client.index for part in others.parts] == [0, 2]
    (rows, _), (more, _) = total.batches(PLAN).values()
    assert len(rows) == 3 and len(more) == 12
    starts = np.cumsum([0, *(len(part.client.train) for part in total.parts)])
    for kind in ("gradient", "update"):
        sent = [part.observe(kind, rows[n : n + 1] - starts[n]) for n, part in enumerate(total.parts)]
        for name, values in total.observe(kind, rows).items():
            assert np.array_equal(values, np.mean([change[name] for change in sent], axis=0)), name
    texts = [part.client.train.ids[rows[n] - starts[n]] for n, part in enumerate(total.parts)]
    assert [total.client.train.ids[row] for row in rows] == texts


def test_two_clients_make_others_the_other_one_alone(target):
    _, others = summed_targets(target, [0, 1])
    rows = np.arange(4)
    single = target.observe("update", rows)
    assert others.size == 1
    assert all(np.array_equal(values, single[name]) for name, values in others.observe("update", rows).items())


def test_later_rounds_are_those_of_the_run_which_does_not_change(target):
    states = [client.state for client in target.simulation.clients]
    server = {name: values.copy() for name, values in target.simulation.server.state_dict().items()}
    rounds = [(done, selected) for _, done, selected in next_rounds(target, 2)]
    assert rounds == [(1, [0, 1, 2]), (2, [0, 1, 2])]
    assert all(a is b.state for a, b in zip(states, target.simulation.clients, strict=True))
    after = target.simulation.server.state_dict()
    assert all(np.array_equal(values, after[name]) for name, values in server.items())


def test_the_labels_of_all_clients_are_read_from_a_sum_of_gradients(target):
    """A head of 20 labels, all as likely: each example's gradient is (p − one-hot) times its features."""
    rng, labels = np.random.default_rng(0), [[3, 7], [7, 12], [0, 19]]
    changes = {}
    for client, own in enumerate(labels):
        rows = np.full((2, 20), 1 / 20) - np.eye(20)[own]
        changes[client] = {"head.weight": rows.T @ rng.normal(size=(2, 300)) / 2}
    assert labels_from(view_of("sum", changes, [0, 1, 2], 0), 6) == [0, 3, 7, 7, 12, 19]
    assert labels_from(view_of("others", changes, [0, 1, 2], 0), 4) == [0, 3, 7, 19]  # without client 1
    total, _ = summed_targets(target, clients_of_round(target))
    found = list(infer_labels(total, PLAN))
    assert {(row.view, row.clients, row.batch) for row in found} == {("sum", 3, 1), ("sum", 3, 4)}


def test_a_client_that_learns_by_heart_is_found_in_its_upload_and_much_less_in_a_sum(
    toy_values, toy_rows, tmp_path
):
    table = tmp_path / "many.csv"
    rows = pd.read_csv(toy_rows(tmp_path / "few.csv", rows_a_site=64)).sample(frac=1, random_state=0)
    rows.assign(client=[f"c{row % 8}" for row in range(len(rows))]).drop(columns="site").to_csv(table, index=False)
    config = make_config(
        toy_values(
            method="fedavg-lora",
            adapter={"rank": 8, "alpha": 16},
            training={"epochs": 12},
            data={"source": str(table), "test_fraction": 0.5, "clients": {"column": "client"}},
        )
    )
    target = train_target(config, 1, None)
    scores = score_rounds(target, replace(PLAN, observed=1), quiet)
    auc = {}
    for view in ("single", "sum", "others"):
        found = scores.over("round", "factors", view)
        each = [roc_auc_score([1] * len(one) + [0] * len(other), [*one, *other]) for one, other in found.values()]
        auc[view] = np.mean(each)
    assert scores.clients == {"single": 1, "sum": 8, "others": 7, "colluding": 2}
    assert auc["single"] > 0.75 and auc["sum"] < auc["single"] - 0.1
    assert abs(auc["others"] - auc["sum"]) < 0.05


def test_membership_has_a_row_for_each_view_and_way_to_use_several_rounds(target):
    rows = list(infer_from_updates(target, PLAN, quiet))
    assert {(row.view, row.over, row.rounds, row.clients) for row in rows} == {
        (view, over, rounds, clients)
        for view, clients in (("single", 1), ("sum", 3), ("others", 2))
        for over, rounds in (("round", 1), ("mean", 2), ("highest", 2), ("difference", 2), ("departure", 2))
        if (view, over) != ("single", "departure")
    }
    one = list(infer_from_updates(target, replace(PLAN, observed=1), quiet, ["single"]))
    assert one == [row for row in rows if (row.view, row.over) == ("single", "round")]


def test_clients_with_factors_of_their_own_have_no_sum(toy_values):
    target = train_target(make_config(toy_values(method="ce-lora")), 1, None)
    assert possible_views(target, [0, 1, 2]) == ("single",)


@pytest.fixture(scope="module")
def sealed(toy_values):
    """The first of three clients of a sealed run, after a round."""
    return train_target(make_config(toy_values(method="own-prior", sealing={"on": True})), 1, None)


def test_of_a_sealed_run_the_parts_make_the_sum_that_the_server_opens(sealed):
    clients = clients_of_round(sealed)
    assert clients == [0, 1, 2] and possible_views(sealed, clients) == ("single", "sum", "others")
    total, _ = summed_targets(sealed, clients)
    rows = np.arange(len(total.client.train))
    before, layout = sealed.simulation.server.state["wanted"][0], sealed.shared_model.layout
    for copy, done, _ in next_rounds(sealed, 2):
        if done == sealed.round + 1:
            after = copy.server.state["wanted"][0]
    opened, seen = unpack(before - after, layout), total.observe("update", rows)
    for name in opened:
        if not name.startswith("head."):  # a row of the head is divided by its holders
            assert np.allclose(opened[name], seen[name], atol=1e-6), name
    steps = of_each(sealed.simulation.server.state["steps"][0], layout)
    single = pack(sealed.observe("update", np.arange(len(sealed.client.train))), layout)
    assert set(np.unique(np.abs(single / steps)).tolist()) == {0.0, 1.0}  # levels −1, 0, 1


def test_members_are_inferred_in_the_views_of_a_sealed_run(sealed):
    scores = score_rounds(sealed, replace(PLAN, observed=2), quiet)
    assert scores.clients == {"single": 1, "sum": 3, "others": 2} and scores.observed == 2
    for found in scores.rounds.values():
        assert all(np.isfinite(part).all() for each in found.values() for pair in each for part in pair)


def test_a_client_of_a_sealed_run_that_is_in_no_sum_sends_nothing(toy_values, toy_rows, tmp_path):
    first, second = (toy_rows(tmp_path / f"{seed}.csv", 40, seed).read_text() for seed in (0, 1))
    more = [line.replace(",amber", ",dill") for line in second.splitlines(True) if ",amber" in line]
    (tmp_path / "four.csv").write_text(first + "".join(more))
    given = {"groups": "given", "members": [["amber", "basil", "dill"]]}
    config = make_config(
        toy_values(
            method="fedavg-lora",
            sealing={"on": True},
            aggregation=given,
            data={"source": str(tmp_path / "four.csv")},
        )
    )
    target = train_target(config, 1, "coral")
    with pytest.raises(RunError, match="coral"):
        target.observe("update", np.arange(4))
    assert score_rounds(target, PLAN, quiet).clients == {"single": 1, "sum": 3, "others": 2}
