"""The best round of a run is kept, and a run without progress ends early, also if it was interrupted."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_round import LAYOUT, Scripted

from trifed import export_client, make_config, resume, run
from trifed.common.errors import ConfigError, RunError
from trifed.deployment.run_checks import check_for_sites
from trifed.federation import events
from trifed.federation.best_round import EvaluatedRounds, refuse_without_validation
from trifed.federation.context import run_context
from trifed.federation.kept_checkpoints import kept_rounds
from trifed.federation.round import FederatedRun
from trifed.federation.run_folder import RunFolder
from trifed.federation.server import Server
from trifed.reports.read import read_source

DATA = {"data": {"source": "x.csv"}}
UP_AND_DOWN = {1: 0.1, 2: 0.5, 3: 0.9, 4: 0.3, 5: 0.2, 6: 0.1}


def rounds_with(values, **settings):
    """Rounds whose only client has these values of the deciding metric on its validation data."""
    config = make_config({**DATA, **settings})
    found = EvaluatedRounds(config, "trained")
    for number, value in values.items():
        found.read([{"event": "scores", "round": number, "stage": "trained", "valid": {config.metric: value}}])
    return found


def test_the_best_round_is_the_first_of_equal_ones_and_less_loss_is_better():
    values = {1: 0.2, 2: 0.6, 3: 0.6, 4: 0.1}
    assert rounds_with(values).best() == 2 and rounds_with(values).best(until=1) == 1
    assert rounds_with(values, metric="loss").best() == 4
    assert rounds_with({1: None, 2: float("nan"), 3: 0.1}).best() == 3
    assert rounds_with({1: None}).best() is None


def test_a_value_is_the_mean_over_the_clients_that_have_one_and_the_start_is_no_round():
    found = EvaluatedRounds(make_config(DATA), "interpolated")
    found.read(
        {"event": "scores", "round": number, "stage": stage, "valid": {"accuracy": value}}
        for number, stage, value in [
            (0, "start", 0.9), (1, "between", 0.2), (1, "between", 0.4), (1, "between", None), (1, "trained", 0.9),
        ]
    )  # fmt: skip
    assert found.values() == {1: pytest.approx(0.3)}


def test_patience_counts_evaluations_after_the_best_one():
    values = {2: 0.5, 4: 0.4, 6: 0.5}
    assert rounds_with(values).end() is None and rounds_with(values, patience=3).end() is None
    end = rounds_with(values, patience=2).end()
    assert (end.round, end.evaluations) == (6, 2)
    assert rounds_with({1: None, 2: None}, patience=1).end() is None


def test_the_best_rounds_of_all_rounds_to_which_a_run_can_go_back_are_needed():
    values = {1: 0.5, 2: 0.1, 3: 0.2, 4: 0.9, 5: 0.3}
    assert rounds_with(values, keep="best", keep_checkpoints=2).needed(5) == {4}
    assert rounds_with(values, keep="best", keep_checkpoints=3).needed(5) == {1, 4}
    assert rounds_with(values).needed(5) == set()


class Scored(Scripted):
    """A transport whose clients have the accuracy of a script on their validation data."""

    accuracies = UP_AND_DOWN

    def evaluate(self, number, stages):
        super().evaluate(number, stages)
        for stage in stages:
            valid = {"accuracy": self.accuracies.get(number, 0.0)}
            yield events.ClientScores(number, stage, "client-0", valid, {"accuracy": 0.5, "examples": 2})

    def save_checkpoint(self, number, needed=()):
        self.calls.append(("checkpoint", number, sorted(needed)))


def play(tmp_path, **settings):
    config = make_config({**DATA, "method": "fedavg-lora", "rounds": 6, "evaluate_every": 1, **settings})
    server = Server(run_context(config, LAYOUT, "f" * 64), 3, torch.zeros(2).numpy())
    transport, logged = Scored(server), []
    FederatedRun(config, transport, RunFolder(tmp_path), lambda event: logged.append(event.to_dict())).run()
    return transport, logged


def test_any_transport_ends_early_and_keeps_the_best_round(tmp_path):
    transport, logged = play(tmp_path, patience=2, keep="best", keep_checkpoints=1)
    assert [call[1] for call in transport.calls if call[0] == "train"] == [1, 2, 3, 4, 5]
    kept = [call[2] for call in transport.calls if call[0] == "checkpoint"]
    assert kept == [[], [1], [2], [3], [3], [3]]
    assert [call[1] for call in transport.calls if call[0] == "finish"] == [6]
    assert [call[2] for call in transport.calls if call[0] == "evaluate"][-2:] == [("received",), ("trained",)]
    notes = [event for event in logged if event["event"] in ("best so far", "ended early", "kept round")]
    assert [(event["event"], event["round"]) for event in notes] == [
        ("best so far", 1), ("best so far", 2), ("best so far", 3), ("ended early", 5), ("kept round", 3),
    ]  # fmt: skip
    assert notes[3]["evaluations"] == 2 and (notes[4]["last"], notes[4]["value"]) == (5, 0.9)
    assert all(events.line_of(event) for event in notes)


def test_by_default_all_rounds_are_done_and_nothing_is_logged(tmp_path):
    transport, logged = play(tmp_path)
    assert [call[1] for call in transport.calls if call[0] == "train"] == [1, 2, 3, 4, 5, 6]
    assert not {"best so far", "ended early", "kept round"} & {event["event"] for event in logged}


# -- real runs, whose values are those of a script


@pytest.fixture
def script(monkeypatch):
    values = dict(UP_AND_DOWN)
    monkeypatch.setattr(EvaluatedRounds, "values", lambda self: {n: values.get(n, 0.0) for n in self.parts})
    return values


@pytest.fixture(scope="module")
def plain(toy_values, tmp_path_factory):
    """`plain("fedavg-lora", rounds=3)`: the folder of a run without any choice. Do not write into it."""
    known = {}

    def get(method, rounds, **changes):
        key = (method, rounds, repr(changes))
        if key not in known:
            values = toy_values(method=method, rounds=rounds, baselines=[], **changes)
            known[key] = run(make_config(values), tmp_path_factory.mktemp("plain") / "toy").path
        return known[key]

    return get


def chosen(toy_values, method="fedavg-lora", **changes):
    defaults = {"rounds": 6, "evaluate_every": 1, "keep": "best", "baselines": []}
    return make_config(toy_values(method=method, **{**defaults, **changes}))


def read(folder, name="summary.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def assert_same_models(folder, other):
    files = sorted(path.relative_to(other) for path in (other / "clients").rglob("*.safetensors"))
    assert files
    for file in files:
        mine, theirs = load_file(folder / file), load_file(other / file)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), file
    mine, theirs = read(folder), read(other)
    assert mine["accuracy"]["mean"] == theirs["accuracy"]["mean"]
    assert [client["now"] for client in mine["clients"]] == [client["now"] for client in theirs["clients"]]
    assert read(folder, "predictions.json")["model"] == read(other, "predictions.json")["model"]


@pytest.mark.parametrize(("method", "wire"), [("fedavg-lora", {"bits": 32}), ("own-prior", {"bits": 8})])
def test_the_result_is_the_models_of_the_best_round_and_the_last_one_stays(
    method, wire, script, plain, toy_values, tmp_path
):
    folder = run(chosen(toy_values, method, wire=wire), tmp_path / "run").path
    assert_same_models(folder, plain(method, 3, wire=wire))
    summary = read(folder)
    assert (summary["kept_round"]["round"], summary["kept_round"]["last"]) == (3, 6)
    assert [point["round"] for point in summary["curve"]] == [0, 1, 2, 3, 4, 5, 6]
    assert RunFolder(folder).rounds_done() == 6 and 3 in kept_rounds(folder)
    [partition] = read_source(folder).study.results.values()
    assert partition.methods[method].kept_rounds == [3]
    card = export_client(folder, "amber", "lora", tmp_path / "lora") / "README.md"
    assert "the model of round 3" in card.read_text(encoding="utf-8")


def test_a_run_that_was_interrupted_keeps_the_same_round(script, plain, toy_values, tmp_path):
    def stop(event):
        if event["event"] == "trained" and event["round"] == 4:
            raise KeyboardInterrupt

    folder, config = tmp_path / "run", chosen(toy_values, keep_checkpoints=1)
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, stop)
    shutil.rmtree(folder / "checkpoints")  # as if the process had ended before it kept the last checkpoint
    resume(folder)
    assert_same_models(folder, plain("fedavg-lora", 3))
    assert read(folder)["kept_round"]["round"] == 3


@pytest.mark.parametrize(("value", "best"), [(0.4, 3), (1.0, 7)])
def test_more_rounds_may_bring_a_better_one(value, best, script, plain, toy_values, tmp_path):
    script[7] = value
    folder = run(chosen(toy_values), tmp_path / "run").path
    resume(folder, rounds=7)
    assert read(folder)["kept_round"]["round"] == best
    assert_same_models(folder, plain("fedavg-lora", best))


def test_a_run_that_goes_back_has_the_best_of_the_rounds_that_are_left(script, plain, toy_values, tmp_path):
    script.update({1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4, 6: 1.0})
    folder = run(chosen(toy_values, keep_checkpoints=2), tmp_path / "run").path
    assert read(folder)["kept_round"]["round"] == 6 and kept_rounds(folder) == [2, 5, 6]
    resume(folder, from_round=5, rounds=5)
    assert read(folder)["kept_round"]["round"] == 2
    assert_same_models(folder, plain("fedavg-lora", 2))


def test_a_run_that_ends_early_has_the_models_of_its_last_round_and_goes_on_with_more_patience(
    script, plain, toy_values, tmp_path
):
    folder = run(chosen(toy_values, keep="last", patience=2), tmp_path / "run").path
    assert_same_models(folder, plain("fedavg-lora", 5))
    summary = read(folder)
    assert summary["ended_early"]["round"] == 5 and summary["rounds"] == 6 and "kept_round" not in summary
    assert summary["accuracy_trained"]["round"] == summary["accuracy_received"]["round"] == 5
    assert summary["bytes"] == read(plain("fedavg-lora", 5))["bytes"]
    nine = shutil.copytree(folder, tmp_path / "nine")
    assert resume(nine, rounds=9).summary["ended_early"]["round"] == 5  # as a run of nine rounds
    text = (folder / "config.toml").read_text()
    assert "patience = 2" in text
    (folder / "config.toml").write_text(text.replace("patience = 2", "patience = 5"))
    again = resume(folder).summary
    assert "ended_early" not in again and again["curve"][-1]["round"] == 6
    assert_same_models(folder, plain("fedavg-lora", 6))


def test_identity(toy_values):
    usual = chosen(toy_values, keep="last").run_id()
    assert chosen(toy_values, keep="last", metric="f1_macro", patience=3).run_id() == usual
    assert chosen(toy_values).run_id() != usual
    assert chosen(toy_values, metric="loss").run_id() != chosen(toy_values).run_id()


@pytest.mark.parametrize("setting", [{"keep": "best"}, {"patience": 2}])
def test_without_validation_data_with_noise_and_between_sites_nothing_can_be_chosen(setting, toy_values):
    [name] = setting
    with pytest.raises(ConfigError, match=f"{name}.*valid_fraction"):
        make_config(toy_values(data={"valid_fraction": 0}, **setting))
    noise = {"update": {"epsilon": 5}, "summary": {"epsilon": 5}}
    with pytest.raises(ConfigError, match=rf"{name}.*\[privacy\]"):
        make_config(toy_values(privacy=noise, **setting))
    with pytest.raises(RunError, match=f"{name}.*sites share none"):
        check_for_sites(make_config(toy_values(**setting)))
    config, empty, one = make_config(toy_values(**setting)), SimpleNamespace(valid=[]), SimpleNamespace(valid=[0])
    with pytest.raises(RunError, match=f"{name}.*no client has any"):
        refuse_without_validation(config, [empty])
    refuse_without_validation(config, [empty, one])
    refuse_without_validation(make_config(toy_values()), [empty])
