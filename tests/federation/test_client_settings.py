"""Training settings of single clients: who has them, who shares a pass, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from many_clients import check_equal, clients_of, rounds_of, settings
from trifed.common.errors import ConfigError, RunError
from trifed.config.client_training import ClientTraining
from trifed.config.run import make_config, overlay, read_config, to_toml
from trifed.experiments.runner import resume, run
from trifed.federation import client_update
from trifed.federation.client_update import train_rounds
from trifed.federation.run_folder import RunFolder
from trifed.federation.training.parallel import AtOnce

LOCAL = {"method": "local", "rounds": 2}


def trained(result, number=1):
    events = RunFolder(result.path).events()
    return {e["client"]: e for e in events if e["event"] == "trained" and e["round"] == number}


@pytest.fixture(scope="module")
def plain(toy_values, tmp_path_factory):
    """A run in which all clients have the same settings."""
    return run(make_config(toy_values(**LOCAL)), tmp_path_factory.mktemp("plain") / "run")


def test_one_client_trains_with_its_own_settings_and_the_others_as_before(plain, toy_values, tmp_path):
    own = {"amber": {"learning_rate": 1e-6, "batch_size": 5, "epochs": 2}}
    result = run(make_config(toy_values(**LOCAL, client_settings=own)), tmp_path / "own")
    before, after = trained(plain, 2), trained(result, 2)
    for client in ("basil", "coral"):
        assert after[client]["loss"] == pytest.approx(before[client]["loss"], rel=1e-4)
        assert after[client]["steps"] == before[client]["steps"]
    examples = next(c["train"] for c in result.split["clients"] if c["name"] == "amber")
    assert after["amber"]["steps"] == 2 * -(-examples // 5)
    assert after["amber"]["loss"] > before["amber"]["loss"] + 0.05  # it has hardly learned


def test_settings_equal_to_those_of_all_change_no_number(plain, toy_values, tmp_path):
    own = {"basil": {"learning_rate": 1e-2, "batch_size": 8}}
    result = run(make_config(toy_values(**LOCAL, client_settings=own)), tmp_path / "own")
    assert result.accuracy == plain.accuracy
    assert [e["loss"] for e in trained(result, 2).values()] == [e["loss"] for e in trained(plain, 2).values()]


def test_a_clients_epochs_hold_where_the_others_have_steps(toy_values, tmp_path):
    changes = {**LOCAL, "rounds": 1, "training": {"steps": 2}}
    own = {"amber": {"epochs": 1}, "basil": {"steps": 5}}
    result = run(make_config(toy_values(**changes, client_settings=own)), tmp_path / "own")
    examples = next(c["train"] for c in result.split["clients"] if c["name"] == "amber")
    steps = {name: event["steps"] for name, event in trained(result).items()}
    assert steps == {"amber": -(-examples // 8), "basil": 5, "coral": 2}


def test_clients_share_a_pass_with_equal_settings_only(make_bench, monkeypatch):
    shared_model = make_bench("fedavg-lora")
    slow = settings(learning_rate=1e-4, batch_size=3)
    rounds = [
        replace(each, settings=slow if place in (1, 2) else None)
        for place, each in enumerate(rounds_of(shared_model, clients_of(shared_model, [11, 3, 9, 19, 6])))
    ]
    alone = [train_rounds(shared_model, [each], settings())[0] for each in rounds]
    passes = []
    together = client_update.train_locally
    monkeypatch.setattr(
        client_update,
        "train_locally",
        lambda model, jobs, *more, **others: passes.append(len(jobs)) or together(model, jobs, *more, **others),
    )
    check_equal(alone, train_rounds(shared_model, rounds, settings()))
    assert sorted(passes) == [2, 3]
    check_equal(alone, train_rounds(shared_model, rounds, settings(), AtOnce(threads=2, clients=2)))


def test_an_unknown_client_is_named_with_the_nearest_before_anything_is_written(toy_values, tmp_path):
    config = make_config(toy_values(client_settings={"ambre": {"steps": 1}}))
    with pytest.raises(ConfigError, match=r"client_settings\.ambre: .*did you mean 'amber'"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_are_checked_and_kept(toy_values, tmp_path):
    config = make_config(overlay(toy_values(), {"client_settings.amber.learning_rate": 0.1}))
    assert config.training_of("amber").learning_rate == 0.1
    assert config.training_of("basil") is config.training
    (tmp_path / "run.toml").write_text(to_toml(config), encoding="utf-8")
    assert read_config(tmp_path / "run.toml").run_id() == config.run_id() != make_config(toy_values()).run_id()
    with pytest.raises(ConfigError, match=r"client_settings\.amber\.lr: unknown setting.*batch_size"):
        make_config(toy_values(client_settings={"amber": {"lr": 1}}))
    with pytest.raises(ConfigError, match=r"client_settings\.amber\.learning_rate: got -1"):
        make_config(toy_values(client_settings={"amber": {"learning_rate": -1}}))
    noised = {"method": "fedavg-lora", "privacy": {"training": {"epsilon": 8}}, "training": {"steps": 2}}
    with pytest.raises(ConfigError, match=r"client_settings\.amber\.steps: with privacy\.training"):
        make_config(toy_values(**noised, client_settings={"amber": {"steps": 1}}))
    make_config(toy_values(**noised, client_settings={"amber": {"learning_rate": 1}}))


def test_the_order_of_the_tables_does_not_matter(toy_values):
    tables = {"amber": {"steps": 1}, "basil": {"epochs": 2}}
    one, other = (make_config(toy_values(client_settings=dict(order))) for order in (
        tables.items(), reversed(tables.items())
    ))  # fmt: skip
    assert one.run_id() == other.run_id()


def test_other_settings_of_a_client_are_named_when_a_run_is_resumed(toy_values, tmp_path):
    values = toy_values(**LOCAL)
    run(make_config(values), tmp_path / "begun")
    changed = make_config({**values, "client_settings": {"amber": {"steps": 1}}})
    RunFolder(tmp_path / "begun").write_text("config.toml", to_toml(changed))
    with pytest.raises(RunError, match=r"client_settings\.amber\.steps \(was None, is 1\)"):
        resume(tmp_path / "begun")


def test_unset_values_are_those_of_all():
    assert ClientTraining().over(settings(steps=3)) == settings(steps=3)
    assert ClientTraining(epochs=2).over(settings(steps=3)) == settings(epochs=2)
    assert ClientTraining(weight_decay=0.0, clip_norm=0.0).over(settings()).clip_norm == 0
