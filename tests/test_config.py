"""One model of a run: every mistake at once, by its dotted name; TOML and back."""

from __future__ import annotations

import hashlib
import tomllib
import typing

import pytest
from pydantic import BaseModel

from trifed.common.errors import ConfigError
from trifed.common.strict_settings import StrictSettings
from trifed.config.run import DEFAULT_METHOD, PARTS, RunConfig, make_config, overlay, to_toml
from trifed.config.run_identity import NO_NUMBERS, VERSION_0_1_0
from trifed.config.settings import (
    GUARDS,
    PrivacySettings,
    SummaryPrivacy,
    TrainingPrivacy,
    TrainingSettings,
    UpdatePrivacy,
)
from trifed.config.toml_files import read_toml
from trifed.methods import METHODS

DATA = {"source": "tickets.csv"}


def config(**values) -> RunConfig:
    return make_config({"data": DATA, **values})


def problems(values) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        make_config(values, "my.toml")
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    assert str(caught.value).startswith(f"my.toml: {len(caught.value.problems)} mistake")
    return caught.value.problems


def test_only_data_must_be_named():
    made = config()
    assert made.method.name == DEFAULT_METHOD and made.rounds == 20
    assert [problem.split(": ")[0] for problem in problems({})] == ["data"]


def test_all_mistakes_are_told_at_once_by_their_dotted_names():
    found = problems(
        {
            "rounds": 0,
            "roundz": 5,
            "data": {"source": "x.csv", "clients": {"alhpa": 1.0}},
            "training": {"learning_rat": 1e-3, "batch_size": -4, "schedule": "cosine"},
            "method": {"name": "ce-lora", "self_weigth": 0.5, "temperature": 0},
            "model": {"name": 5},
        }
    )
    by_name = {problem.split(":")[0]: problem for problem in found}
    assert set(by_name) == {
        "rounds",
        "roundz",
        "data.clients.alhpa",
        "training.learning_rat",
        "training.batch_size",
        "training.schedule",
        "method.self_weigth",
        "method.temperature",
        "model.name",
    }
    assert len(found) == 9
    for wrong, right in {
        "roundz": "rounds",
        "data.clients.alhpa": "alpha",
        "training.learning_rat": "learning_rate",
        "method.self_weigth": "self_weight",
    }.items():
        assert f"did you mean '{right}'?" in by_name[wrong]
    assert "got -4" in by_name["training.batch_size"] and "got 0" in by_name["rounds"]
    assert "'constant', 'linear' or 'linear-each-round'" in by_name["training.schedule"]


def test_a_name_unlike_any_other_gets_no_suggestion_but_the_list():
    (found,) = problems({"data": DATA, "training": {"zzz": 1}})
    assert found.startswith("training.zzz: ") and "epochs, " in found


def test_an_unknown_method_is_told_with_the_nearest_one():
    (found,) = problems({"data": DATA, "method": "fedavg-lra"})
    assert found.startswith("method.name: got 'fedavg-lra'")
    assert all(name in found for name in METHODS) and "'fedavg-lora'" in found


def test_baselines_are_checked():
    found = problems({"data": DATA, "method": "local", "baselines": ["local", "loca", "ce-lora"]})
    assert len(found) == 2
    assert found[0].startswith("baselines") and "'local'" in found[0]
    assert found[1].startswith("baselines: got 'loca'") and "did you mean 'local'?" in found[1]


def test_a_method_is_given_as_a_word_or_as_a_table():
    assert config(method="local") == config(method={"name": "local"})
    mixed = config(method={"name": "ce-lora", "data_share": 0.25})
    assert mixed.method.options().data_share == 0.25 and mixed.method.options().self_weight == 0.5
    assert config(method={"smoothing": 0.5}).method.name == DEFAULT_METHOD == "own-prior"


def test_options_without_a_name_say_whose_they_had_to_be():
    (found,) = problems({"data": DATA, "method": {"temperature": 0.5}})
    assert found.startswith("method.temperature: ") and "smoothing, apart" in found
    assert found.endswith("'own-prior'")


def test_one_methods_options_are_not_anothers():
    (found,) = problems({"data": DATA, "method": {"name": "local", "data_share": 0.5}})
    assert found.startswith("method.data_share: unknown setting")


@pytest.mark.parametrize(
    "wrong",
    [{"method": 5}, {"method": ["local"]}, {"method": {"name": 5}}, {"data": "tickets.csv"}, {"training": 3}],
    ids=["a number", "a list", "a number for a name", "data in one word", "training in a number"],
)
def test_values_of_another_kind_are_mistakes_too(wrong):
    found = problems({"data": DATA, **wrong})
    assert found and all(problem.startswith((next(iter(wrong)), "method.name")) for problem in found)


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", "", "with space"])
def test_a_name_is_a_folders_name(name):
    (found,) = problems({"data": DATA, "name": name})
    assert found.startswith("name: got ")


def test_toml_takes_a_configuration_there_and_back(tmp_path):
    made = config(
        name="round-trip",
        seed=7,
        baselines=["local"],
        method={"name": "ce-lora", "temperature": 0.25, "match_labels": True},
        adapter={"rank": 4, "target_modules": ["query", "value"]},
        training={"steps": 5, "learning_rate": 1e-3},
    )
    path = tmp_path / "run.toml"
    path.write_text(to_toml(made), encoding="utf-8")
    assert make_config(read_toml(path)) == made
    assert make_config(tomllib.loads(to_toml(config()))) == config()


def test_none_stands_only_where_it_is_the_default():
    # TOML has no null: a setting whose None meant "off" against another default would come back switched on.
    def check(model, place):
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                check(inner, f"{place}{name}.")
            elif type(None) in typing.get_args(inner):
                assert field.default is None, f"{place}{name}"

    check(RunConfig, "")
    assert config(training={"clip_norm": 0}).training.clip_norm == 0
    assert any("clip_norm" in problem for problem in problems({"data": DATA, "training": {"clip_norm": -1}}))


@pytest.mark.parametrize("text", ["rounds = ", "rounds = 1\nrounds = 2", "\ufeffrounds ="])
def test_a_file_that_is_no_toml_is_a_mistake(tmp_path, text):
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(path)


def test_files_that_cannot_be_read_are_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="got a folder"):
        read_toml(tmp_path)
    (tmp_path / "latin.toml").write_bytes('name = "für"'.encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_toml(tmp_path / "latin.toml")


def test_flags_lie_over_the_file():
    values = {"rounds": 5, "training": {"epochs": 1, "batch_size": 8}, "data": DATA}
    result = overlay(values, {"rounds": 9, "training.epochs": 3, "data.clients.alpha": 0.1, "adapter.rank": 2})
    assert result == {
        "rounds": 9,
        "training": {"epochs": 3, "batch_size": 8},
        "data": {"source": "tickets.csv", "clients": {"alpha": 0.1}},
        "adapter": {"rank": 2},
    }
    assert values == {"rounds": 5, "training": {"epochs": 1, "batch_size": 8}, "data": {"source": "tickets.csv"}}


def test_flags_of_a_method_lie_over_either_spelling():
    assert overlay({"method": "ce-lora"}, {"method.temperature": 0.5}) == {
        "method": {"name": "ce-lora", "temperature": 0.5}
    }
    own = {"method": {"name": "ce-lora", "temperature": 0.5}}
    assert overlay(own, {"method.name": "local"}) == {"method": {"name": "local"}}
    assert overlay(own, {"method.name": "ce-lora"}) == own
    unnamed = {"method": {"smoothing": 0.5}}
    assert overlay(unnamed, {"method.name": DEFAULT_METHOD})["method"]["smoothing"] == 0.5
    assert overlay(unnamed, {"method.name": "ce-lora"}) == {"method": {"name": "ce-lora"}}


def test_a_flag_below_a_value_that_should_be_a_table_is_a_mistake():
    with pytest.raises(ConfigError, match="training: "):
        make_config(overlay({"data": DATA, "training": 3}, {"training.epochs": 1}))


def test_the_run_id_changes_with_what_changes_the_numbers():
    base = config()
    ids = [
        config(**change).run_id()
        for change in (
            {},
            {"seed": 1},
            {"rounds": 21},
            {"participation": 0.5},
            {"method": "local"},
            {"method": {"name": "ce-lora", "temperature": 0.2}},
            {"adapter": {"rank": 4}},
            {"training": {"learning_rate": 1e-3}},
            {"model": {"name": "other"}},
            {"data": {"source": "other.csv"}},
        )
    ]
    assert ids[0] == base.run_id() and len(set(ids)) == len(ids)
    assert len(base.run_id()) == 12 and int(base.run_id(), 16) >= 0


def test_the_run_id_does_not_change_with_what_stands_beside_the_numbers():
    same = config(name="another", baselines=["local"], controls=False)
    assert same.run_id() == config().run_id()


def test_a_setting_of_a_later_version_counts_only_where_it_is_not_at_its_default():
    class LaterTraining(TrainingSettings):
        later: int = 3

    class LaterTable(StrictSettings):
        setting: int = 1

    class Later(RunConfig):
        training: LaterTraining = LaterTraining()
        table: LaterTable = LaterTable()

    same = Later(data=DATA)
    assert same.run_id() == config().run_id()
    changed = [{"training": {"later": 4}}, {"table": {"setting": 2}}]
    assert len({Later(data=DATA, **change).run_id() for change in changed} | {same.run_id()}) == 3


def test_every_setting_of_the_first_version_is_still_a_setting():
    """A name that is missing here would let a renamed setting drop out of the identity."""
    optional = {
        "privacy.summary": SummaryPrivacy,
        "privacy.update": UpdatePrivacy,
        "privacy.training": TrainingPrivacy,
    }
    for table, names in VERSION_0_1_0.items():
        model = optional.get(table, RunConfig)
        for part in table.split(".") if table and table not in optional else ():
            model = model.model_fields[part].annotation
        assert set(names.split()) <= set(model.model_fields), table


def test_a_part_that_differs_from_the_methods_own_counts():
    ids = {
        config(method=m, personalization=p).run_id()
        for m in ("own-prior", "fed-xs")
        for p in ({}, {"interpolate": 0.5}, {"interpolate": 0.25}, {"keep": ["head."]})
    }
    assert len(ids) == 8
    assert config(method="own-prior", personalization={"interpolate": 0.75}).run_id() in ids


def test_a_baseline_is_the_same_run_by_another_method():
    own = config(method={"name": "ce-lora", "temperature": 0.2}, baselines=["local"], seed=3)
    other = own.with_method("local")
    assert other.method.name == "local" and other.baselines == [] and not other.controls
    assert other.run_id() == config(method="local", seed=3).run_id()
    assert make_config(tomllib.loads(to_toml(other))) == other


def test_a_methods_defaults_lie_under_what_the_user_says():
    own = config(method="own-prior")
    assert (own.adapter.rank, own.wire.bits, own.training.learning_rate) == (32, 1, 0.02)
    told = config(method="own-prior", adapter={"rank": 4, "alpha": 8})
    assert (told.adapter.rank, told.adapter.alpha, told.wire.bits) == (4, 8, 1)
    assert config(method="ce-lora").adapter.rank == 8
    assert make_config(tomllib.loads(to_toml(told))) == told


def test_a_baseline_has_its_own_methods_defaults_and_all_that_the_user_said():
    assert config(method="own-prior", seed=3).with_method("local") == config(
        method="local", controls=False, baselines=[], seed=3
    )
    told = config(method="own-prior", adapter={"rank": 4}, wire={"bits": 2}).with_method("local")
    assert (told.adapter.rank, told.wire.bits, told.training.learning_rate) == (4, 2, 3e-3)


def test_a_configuration_is_not_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        config().rounds = 3


def test_the_debiased_kernel_needs_a_rank_of_four():
    values = {"data": {"source": "x.csv"}, "method": {"name": "ce-lora", "model_similarity": "cka"}}
    make_config({**values, "adapter": {"rank": 4}})
    with pytest.raises(ConfigError, match=r"method\.model_similarity: .*4.*3.*cosine"):
        make_config({**values, "adapter": {"rank": 3}})


def test_guards_change_no_identity_and_the_runs_before_them_keep_theirs():
    """What a run was called before there was a table [privacy]: the hash of all else."""
    later = {
        "metric": True,
        "keep": True,
        "adapter": {"init_std", "start", "train_norms", "train_tokens"},
        "model": {"target_mean", "target_scale"},
        "training": {"clients_at_once", "class_weights"},
        "data": {"separator", "encoding", "sheet", "label_separator", "holdout"},
    }
    before = config(evaluate_every=1).model_dump_json(
        exclude=dict.fromkeys([*NO_NUMBERS, *PARTS, "privacy", "client_settings", "sealing"], True) | later
    )
    assert config(evaluate_every=1).run_id() == hashlib.sha256(before.encode()).hexdigest()[:12]
    assert config().run_id() == config(evaluate_every=1).run_id() != config(evaluate_every=2).run_id()
    assert set(PrivacySettings.model_fields) >= GUARDS
    for guard in GUARDS:
        assert config(privacy={guard: "warn"}).run_id() == config().run_id()
    with pytest.raises(ConfigError, match=r"privacy\.few_tokens: .*'never'.*'refuse', 'warn'"):
        config(privacy={"few_tokens": "never"})
