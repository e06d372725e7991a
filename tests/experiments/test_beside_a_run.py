"""What runs beside a run: the same method with nothing shared, and local training at a rate that was searched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trifed import make_config, resume, run
from trifed.config.toml_files import read_toml
from trifed.reports.comparison.advice import advice_on
from trifed.reports.comparison.verdict import cautions
from trifed.reports.comparison.worth import worth_of_sharing
from trifed.reports.read import read_source
from trifed.reports.results import MethodResult, Partition, Source, Study, Traffic

RATES = [1e-6, 1e-2]


def predictions(folder):
    return json.loads((folder / "predictions.json").read_text())["model"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "own-prior"}, ["alone"]),
        ({"method": "fedavg-lora"}, ["alone"]),
        ({"method": "fedavg-lora", "baselines": []}, []),
        ({"method": "fedavg-lora", "baselines": ["local"]}, ["local"]),
        ({"method": "local"}, []),
        ({"method": "fed-sb"}, []),
        ({"method": "ce-lora", "personalization": {"share": False}}, []),
    ],
)
def test_a_method_that_shares_has_the_baseline_alone(changes, expected, toy_values):
    config = make_config(toy_values(**{"baselines": None, **changes}))
    assert config.with_baselines().baselines == expected
    assert config.run_id() == make_config(toy_values(**{**changes, "baselines": []})).run_id()


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora", "ffa-lora"])
def test_it_has_the_numbers_of_a_run_of_its_own(method, toy_values, tmp_path):
    """The data and the model that were loaded for the run are used again."""
    config = make_config(toy_values(method=method, rounds=2, baselines=None))
    loaded = []
    done = run(
        config, tmp_path / "run", lambda event: loaded.append(event) if event["event"] == "loading" else None
    )
    assert list(done.baselines) == ["alone"] and len(loaded) == 2  # data and model, once
    apart = run(config.with_method("alone"), tmp_path / "apart")
    assert predictions(apart.path) == predictions(done.baselines["alone"].path)
    assert apart.summary["curve"] == done.baselines["alone"].summary["curve"]
    assert "alone" in repr(done)


def test_a_run_that_stops_in_its_baseline_is_resumed_there(toy_values, tmp_path):
    config = make_config(toy_values(method="fedavg-lora", rounds=3, baselines=None))

    def stop(event):
        if event["event"] == "trained" and event["round"] == 2 and (tmp_path / "run" / "baselines").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", stop)
    assert (tmp_path / "run" / "summary.json").is_file()
    done = resume(tmp_path / "run")
    whole = run(config, tmp_path / "whole")
    assert predictions(done.baselines["alone"].path) == predictions(whole.baselines["alone"].path)


def searched(toy_values, **changes):
    return make_config(
        toy_values(method="fedavg-lora", rounds=2, baselines=["alone", "local"], baseline_rates=RATES, **changes)
    )


def test_local_training_has_the_best_rate_on_validation_data(toy_values, tmp_path):
    config = searched(toy_values)
    assert config.rates_to_try("local") == RATES and config.rates_to_try("alone") == [1e-2]
    told = []
    done = run(config, tmp_path / "first", told.append)
    found = json.loads((done.path / "learning_rates.json").read_text())["local"]
    accuracies = {float(rate): accuracy for rate, accuracy in found["grid"].items()}
    assert sorted(accuracies) == RATES and found["chosen"] == max(RATES, key=lambda rate: accuracies[rate])
    local = done.baselines["local"]
    assert read_toml(local.path / "config.toml")["training"]["learning_rate"] == found["chosen"]
    assert local.summary["curve"][-1]["valid_mean"] == accuracies[found["chosen"]]
    assert sum("learning rate" in event.get("text", "") for event in told) == 2

    source = read_source(done.path)
    (tuning,) = source.study.tuning.values()
    assert tuning.methods["local"].chosen == found["chosen"]
    (note,) = [caution.text for caution in cautions(source) if caution.code == "not-tuned"]
    assert "fedavg-lora and alone" in note and "local" not in note

    again = run(config, tmp_path / "second")  # beside the first: the choice is known
    assert not (again.path / "tuning").exists()
    assert predictions(again.baselines["local"].path) == predictions(local.path)
    assert json.loads((again.path / "learning_rates.json").read_text())["local"] == found


def test_a_search_that_was_stopped_goes_on(toy_values, tmp_path):
    config = searched(toy_values)

    def stop(event):
        if event["event"] == "trouble" and "(2 of 2)" in event["text"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "a" / "run", stop)
    done = resume(tmp_path / "a" / "run")
    whole = run(config, tmp_path / "b" / "run")
    names = [folder / "learning_rates.json" for folder in (done.path, whole.path)]
    assert names[0].read_text() == names[1].read_text()
    assert predictions(done.baselines["local"].path) == predictions(whole.baselines["local"].path)


def test_a_search_that_goes_on_with_more_rounds_compares_equal_runs(toy_values, tmp_path):
    def stop(event):
        if event["event"] == "trouble" and "(2 of 2)" in event["text"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(searched(toy_values), tmp_path / "run", stop)
    done = resume(tmp_path / "run", rounds=3)
    tried = [*(done.path / "tuning" / "local").iterdir(), done.baselines["local"].path]
    assert len(tried) == 2
    assert {json.loads((folder / "summary.json").read_text())["rounds"] for folder in tried} == {3}


def test_a_clients_own_rate_is_that_of_the_runs_method(toy_values):
    own = {"amber": {"learning_rate": 1e-4, "epochs": 2}}
    config = make_config(toy_values(method="fedavg-lora", client_settings=own, baselines=["alone", "local"]))
    assert config.with_method("alone").training_of("amber").learning_rate == 1e-4
    other = config.with_method("local").training_of("amber")
    assert (other.learning_rate, other.epochs) == (1e-2, 2)


def test_without_validation_data_nothing_is_searched(toy_values, tmp_path):
    done = run(searched(toy_values, data={"valid_fraction": 0.0}), tmp_path / "run")
    assert not (done.path / "learning_rates.json").exists() and not (done.path / "tuning").exists()
    assert read_toml(done.baselines["local"].path / "config.toml")["training"]["learning_rate"] == 1e-2


def test_the_usual_rates_are_around_the_methods_own(toy_values):
    config = make_config(toy_values(method="fedavg-lora", baselines=["local"], baseline_rates=None))
    assert config.rates_to_try("local") == [0.00333, 0.01, 0.03]


def test_rivals_that_share_are_named_and_one_that_wins_is_shown_winning():
    def result(mean, sent=0):
        return MethodResult(mean=mean, client_accuracy=[mean, mean + 0.01, mean - 0.01], bytes=Traffic(total=sent))

    methods = {
        "own-prior": result(0.8, 9),
        "alone": result(0.7),
        "local": result(0.6),
        "fedavg-lora": result(0.9, 9),
    }

    def found(methods):
        partition = Partition(clients=list("abc"), methods=methods)
        study = Study(name="x", methods=list(methods), seeds=[0], results={"p": partition})
        return worth_of_sharing(partition), advice_on(Source(Path(), "run", study, {}))

    worth, advice = found(methods)
    assert (worth.kind, worth.shared, worth.alone) == ("gain", "own-prior", "alone")
    assert worth.gain == pytest.approx(0.1)
    assert advice.code == "rival" and "fedavg-lora" in advice.text and "+10.0 points" in advice.text
    methods["fedavg-lora"] = result(0.75, 9)
    assert found(methods)[1].code == "federate"
    better = {**methods, "local": result(0.85)}  # the better of those that share nothing counts
    worth, advice = found(better)
    assert (worth.kind, worth.alone, advice.code) == ("loss", "local", "alone")
    assert worth.gain == pytest.approx(-0.05) and worth.worse == list("abc")
