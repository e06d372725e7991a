"""A comparison's settings: equal conditions are not a matter of care."""

from __future__ import annotations

import pandas as pd
import pytest
import tomli_w

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ConfigError
from trifed.config.run import make_config
from trifed.experiments.compare import planned
from trifed.experiments.compare_config import make_comparison, read_comparison


def refused(values) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make_comparison(values)
    return caught.value.problems


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["local", "local"]}, ["methods: 'local' is there twice"]),
        ({"methods": ["locall"]}, ["methods: got 'locall'", "did you mean 'local'?"]),
        ({"methods": []}, ["methods"]),
        ({"seeds": [1, 1]}, ["seeds: 1 is there twice"]),
        ({"references": ["ce-lora"]}, ["references: 'ce-lora' is not compared", "known here: local, fedavg-lora"]),
        ({"rivals": []}, ["rivals: unknown setting", "known here"]),
        ({"tuning": {"seed": 0}}, ["tuning.seed: 0 is a reported seed"]),
        ({"tuning": {"learning_rates": [1e-2, 1e-3]}}, ["tuning.learning_rates", "rising"]),
        ({"tuning": {"partitions": {"a": "b"}}}, ["'a' is not compared"]),
        ({"partitions": {"a/b": {}}}, ["partitions: 'a/b'"]),
        (
            {"partitions": {"x": {"rouds": 3}}},
            ["rouds: unknown setting", "did you mean 'rounds'?", "partitions.x"],
        ),
        ({"partitions": {"x": {"seed": 3}}}, ["partitions.x.seed: the comparison sets this itself"]),
        ({"method_settings": {"local": {"rounds": 9}}}, ["method_settings.local.rounds", "equal for all methods"]),
        ({"method_settings": {"local": {"training": {"epochs": 9}}}}, ["method_settings.local.training.epochs"]),
        ({"method_settings": {"local": {"data": {"label": "x"}}}}, ["method_settings.local.data.label"]),
        ({"method_settings": {"local": {"method": {"mu": 1}}}}, ["method.mu: unknown setting"]),
        ({"method_settings": {"fedprox": {}}}, ["got 'fedprox'", "did you mean 'fedprox-lora'"]),
        ({"run": {"rounds": 0}}, ["data", "rounds: got 0"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_compared_is_named(changes, words, compare_values):
    problems = "\n".join(refused(compare_values(**changes)))
    for word in words:
        assert word in problems


def test_all_mistakes_come_at_once(compare_values):
    problems = refused(compare_values(methods=["x"], seeds=[0, 0], references=["y"]))
    assert len(problems) == 3


def test_a_mistake_of_all_methods_is_said_for_each_place_once(compare_values):
    values = compare_values()
    values["run"] = {**values["run"], "rounds": 0}
    problems = refused(values)
    assert [problem.split()[0] for problem in problems] == ["rounds:", "rounds:"]
    assert "local" in problems[0] and "fedavg-lora" in problems[1]


def test_a_method_may_have_parts_of_its_own(compare_values):
    parts = {"personalization": {"label_prior": True}, "aggregation": {"weights": "equal"}, "wire": {"bits": 1}}
    made = make_comparison(compare_values(method_settings={"fedavg-lora": parts}))
    own = make_config(made.run_values("all", "fedavg-lora"))
    assert (own.personalization.label_prior, own.aggregation.weights, own.wire.bits) == (True, "equal", 1)
    assert not make_config(made.run_values("all", "local")).personalization.label_prior


def test_every_run_gets_the_same_but_for_what_is_varied(compare_values, tmp_path):
    values = compare_values(
        partitions={"a": {"rounds": 5}, "b": {"data": {"clients": {"max_examples": 20}}}},
        method_settings={"fedavg-lora": {"adapter": {"rank": 2}, "training": {"learning_rate": 0.5}}},
    )
    jobs = planned(make_comparison(values), tmp_path)
    assert [(job.partition, job.method, job.config.seed) for job in jobs[:4]] == [
        ("a", "local", 0), ("a", "fedavg-lora", 0), ("b", "local", 0), ("b", "fedavg-lora", 0),
    ]  # fmt: skip
    assert len({job.folder for job in jobs}) == len(jobs) == 8
    for one, other in zip(jobs[::2], jobs[1::2], strict=True):
        mine, theirs = (job.config.model_dump() for job in (one, other))
        for own in ("name", "method", "controls", "adapter", "training"):
            mine.pop(own), theirs.pop(own)
        assert mine == theirs
        assert one.config.training.model_dump(exclude={"learning_rate"}) == other.config.training.model_dump(
            exclude={"learning_rate"}
        )
    assert (jobs[1].config.adapter.rank, jobs[1].config.training.learning_rate) == (2, 0.5)
    assert (jobs[0].config.rounds, jobs[2].config.rounds) == (5, 4)
    assert jobs[2].config.data.clients.max_examples == 20


def test_layer_merges_tables_and_replaces_values():
    below = {"a": {"x": 1, "y": 2}, "b": [1], "c": 3}
    assert deep_merge(below, {"a": {"y": 5}, "b": [2], "d": 4}) == {
        "a": {"x": 1, "y": 5},
        "b": [2],
        "c": 3,
        "d": 4,
    }
    assert below["a"] == {"x": 1, "y": 2}


def test_a_toml_file_says_the_same(compare_values, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(tomli_w.dumps(compare_values()), encoding="utf-8")
    assert read_comparison(path) == make_comparison(compare_values())
    with pytest.raises(ConfigError, match="no such file"):
        read_comparison(tmp_path / "none.toml")


def test_a_table_in_memory_is_written_to_a_file_that_other_processes_read(compare_values, monkeypatch, tmp_path):
    values = compare_values()
    table = pd.read_csv(values["run"]["data"]["source"])
    monkeypatch.chdir(tmp_path)
    values["run"]["data"]["source"] = table
    config = make_comparison(values)
    pd.testing.assert_frame_equal(pd.read_parquet(config.run["data"]["source"]), table)
    assert tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
    values["run"]["data"]["source"] = 3
    assert any("data" in problem for problem in refused(values))
