"""A client's model leaves a run in four forms, and each computes what it computed there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import trifed
from trifed.common.errors import AdapterError, RunError
from trifed.config.run import make_config, to_toml
from trifed.config.toml_files import read_toml
from trifed.export.export import FORMS, export_client, export_clients
from trifed.export.locate import locate_models
from trifed.methods import METHODS

TEXTS = ["invoice refund word001", "parcel", "account password reset token word002 word003 word004"]
KINDS = {
    "ce-lora": FORMS,
    "local": ("lora", "lora-no-head", "merged"),
    "fed-xs": FORMS,  # cores in public frames
    "fed-sb": FORMS,  # cores in frames of the method's own
    "fedavg-full": ("merged",),  # no adapter
}
ADAPTERS = [kind for kind, forms in KINDS.items() if "lora" in forms]
WITH_HEAD = [(kind, form) for kind, forms in KINDS.items() for form in forms if form != "lora-no-head"]

# Runs the Python of every folder's README.md where this package cannot be imported.
ELSEWHERE = """
import json, os, re, sys
import numpy as np

folders, texts, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
results = {}
for folder in folders:
    os.chdir(folder)
    code = re.search(r"```python\\n(.*?)```", open("README.md", encoding="utf-8").read(), re.DOTALL).group(1)
    names = {}
    exec(code, names)
    results[folder] = (names.get("classify") or names["embed"])(texts).numpy()
np.savez(out, **results)
"""


@pytest.fixture(scope="module")
def run_cards(plain_python, tmp_path_factory):
    """What the README of each folder computes for TEXTS, (n, n_labels) or (n, hidden), in a plain interpreter."""

    def results_of(folders):
        home = tmp_path_factory.mktemp("elsewhere")
        names = [str(folder.resolve()) for folder in folders]
        plain_python(ELSEWHERE, home, json.dumps(names), json.dumps(TEXTS), str(home / "out.npz"))
        with np.load(home / "out.npz") as results:
            return {folder: results[name] for folder, name in zip(folders, names, strict=True)}

    return results_of


@pytest.fixture(scope="module")
def exported(run_of, tmp_path_factory):
    """(kind, form) → the folder of client amber, exported."""
    home = tmp_path_factory.mktemp("exported")
    return {
        (kind, form): export_client(run_of(kind), "amber", form, home / kind / form)
        for kind, forms in KINDS.items()
        for form in forms
    }


@pytest.fixture(scope="module")
def elsewhere(exported, run_cards):
    """(kind, form) → what the folder's README computes without this package."""
    results = run_cards(list(exported.values()))
    return {key: results[folder] for key, folder in exported.items()}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_adapters_here_move_logits_a_hundred_times_more_than_the_tolerance(kind, run_of):
    classifier = in_the_run(run_of, kind)
    adapted = classifier.probabilities(TEXTS)
    with classifier.model.encoder.disable_adapter():
        assert np.abs(np.log(adapted) - np.log(classifier.probabilities(TEXTS))).max() > 1e-3


def in_the_run(run_of, kind):
    return trifed.load_client(run_of(kind) / "clients" / "amber")


@pytest.mark.parametrize(("kind", "form"), WITH_HEAD)
def test_the_cards_snippet_gives_the_runs_logits_without_this_package(kind, form, run_of, elsewhere):
    own = in_the_run(run_of, kind).probabilities(TEXTS)
    assert own.std() > 0.01
    np.testing.assert_allclose(np.log(elsewhere[kind, form]), np.log(own), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_without_a_head_the_snippet_gives_the_runs_features(kind, run_of, elsewhere):
    features = torch.from_numpy(elsewhere[kind, "lora-no-head"])
    head = load_file(run_of(kind) / "clients" / "amber" / "head.safetensors")
    logits = features @ head["weight"].T + head["bias"]
    own = in_the_run(run_of, kind).probabilities(TEXTS)
    np.testing.assert_allclose(logits.log_softmax(-1).numpy(), np.log(own), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "form"), WITH_HEAD)
def test_an_export_is_a_model_that_trifed_takes_back(kind, form, run_of, exported):
    own, back = in_the_run(run_of, kind), trifed.load_client(exported[kind, form])
    assert (back.labels, back.settings.max_length) == (own.labels, own.settings.max_length)
    np.testing.assert_allclose(
        np.log(back.probabilities(TEXTS)), np.log(own.probabilities(TEXTS)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_without_a_head_there_is_nothing_but_a_plain_lora(kind, exported):
    folder = exported[kind, "lora-no-head"]
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["modules_to_save"], config["task_type"]) == ("LORA", None, None)
    assert "train" not in config
    names = set(load_file(folder / "adapter_model.safetensors"))
    assert names and all(re.search(r"\.lora_[AB]\.weight$", name) for name in names)
    with pytest.raises(AdapterError, match="without its head"):
        locate_models(folder, None)


def test_the_card_states_the_runs_own_facts(run_of, exported):
    run = run_of("ce-lora")
    card = (exported["ce-lora", "tri-matrix"] / "README.md").read_text(encoding="utf-8")
    summary, environment = (
        json.loads((run / name).read_text(encoding="utf-8")) for name in ("summary.json", "environment.json")
    )
    client = next(c for c in summary["clients"] if c["name"] == "amber")
    for fact in (
        environment["base_fingerprint"],
        METHODS["ce-lora"].citation,
        f"| test accuracy before | {100 * client['before']['accuracy']:.1f} % of {client['before']['examples']} ",
        f"| test accuracy now | {100 * client['now']['accuracy']:.1f} % of {client['now']['examples']} ",
        f"| bytes, this client | {client['bytes_up']:,} up, {client['bytes_down']:,} down |",
        f"| bytes, whole run | {summary['bytes']['up']:,} up",
        f"identity `{environment['run_id']}`, seed {summary['seed']} |",
        f"peft {environment['packages']['peft']}",
        "billing, delivery, login",
        "no privacy guarantee",
        "trifed predict",
    ):
        assert fact in card
    assert client["bytes_up"] > 0
    assert "base_model:" not in card  # a folder of this machine is no name on a hub
    assert str(run) not in card


def test_the_card_of_a_noised_training_says_what_its_guarantee_leaves_out(own_copy, tmp_path):
    run = own_copy("local")
    values = read_toml(run / "config.toml")
    values["training"] = {"steps": 3}
    values["privacy"] = {"training": {"epsilon": 3.5, "delta": 1e-6, "rate": 0.2}}
    (run / "config.toml").write_text(to_toml(make_config(values)), encoding="utf-8")
    card = (export_client(run, "amber", "lora", tmp_path / "lora") / "README.md").read_text(encoding="utf-8")
    assert "no privacy guarantee" not in card
    for fact in ("ε = 3.5 and δ = 1e-06", "noise from its seed", "Validation examples"):
        assert fact in card


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
def test_every_pooling_gives_a_snippet_that_computes_it(pooling, own_copy, save_as_client, tmp_path, run_cards):
    run = own_copy("local")
    save_as_client(run / "clients" / "amber", METHODS["ce-lora"], pooling=pooling)
    own = trifed.load_client(run / "clients" / "amber").probabilities(TEXTS)
    folders = [export_client(run, "amber", form, tmp_path / form) for form in ("lora", "merged")]
    for probabilities in run_cards(folders).values():
        np.testing.assert_allclose(np.log(probabilities), np.log(own), rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    # BERT's own classifier is one linear layer on the pooler: that pooling alone is a stock class.
    stock = pooling == "pooler"
    assert config["architectures"] == ["BertForSequenceClassification" if stock else "BertModel"]
    assert ("AutoModelForSequenceClassification" in (tmp_path / "merged" / "README.md").read_text()) == stock
    if stock:
        assert list(config["id2label"].values()) == ["billing", "delivery", "login"]
        np.testing.assert_allclose(trifed.load_client(tmp_path / "merged").probabilities(TEXTS), own, rtol=1e-4)


def test_a_whole_model_can_be_merged_only(run_of, tmp_path):
    with pytest.raises(AdapterError, match=r"'lora'.*'fedavg-full'.* merged$"):
        export_client(run_of("fedavg-full"), "amber", "lora", tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


def test_a_merged_folder_with_another_head_is_refused(exported, tmp_path):
    folder = Path(shutil.copytree(exported["local", "merged"], tmp_path / "merged"))
    save_file({"weight": torch.zeros(5, 32), "bias": torch.zeros(5)}, folder / "head.safetensors")
    with pytest.raises(AdapterError, match="damaged"):
        trifed.load_client(folder)


def test_all_clients_go_into_one_folder_whose_models_differ(run_of, tmp_path):
    told = []
    home = export_clients(run_of("ce-lora"), "lora", tmp_path / "all", progress=lambda *args: told.append(args))
    assert sorted(path.name for path in home.iterdir()) == ["amber", "basil", "coral"]
    assert told == [(0, 3, "amber"), (1, 3, "basil"), (2, 3, "coral")]
    models = locate_models(home, "all")
    first, second, _ = (trifed.load_client(found.folder).probabilities(TEXTS) for found in models)
    assert not np.array_equal(first, second)
    assert "# basil:" in (home / "basil" / "README.md").read_text(encoding="utf-8")


def test_the_usual_place_is_inside_the_run(own_copy):
    run = own_copy("local")
    assert export_client(run, "basil", "lora") == run / "exports" / "lora" / "basil"
    with pytest.raises(RunError, match="exists already"):
        export_clients(run, "lora")
    assert export_clients(run, "merged") == run / "exports" / "merged"


def test_a_form_that_the_method_cannot_give_is_refused_and_nothing_is_left(run_of, tmp_path):
    with pytest.raises(AdapterError, match=r"'tri-matrix'.*'local'.*lora, lora-no-head, merged"):
        export_client(run_of("local"), "amber", "tri-matrix", tmp_path / "there" / "amber")
    assert list((tmp_path / "there").iterdir()) == []


def test_an_unknown_client_is_answered_with_those_that_are_there(run_of, tmp_path):
    for name, guess in (("ambre", r"did you mean 'amber'\?"), ("../clients/amber", "")):
        with pytest.raises(RunError, match=f"'{name}'.*{guess}.*amber, basil, coral"):
            export_client(run_of("local"), name, "lora", tmp_path / "new")


def test_what_is_there_already_stays(run_of, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine", encoding="utf-8")
    for export in (
        lambda to: export_client(run_of("local"), "amber", "lora", to),
        lambda to: export_clients(run_of("local"), "lora", to),
    ):
        with pytest.raises(RunError, match="exists already"):
            export(tmp_path / "there")
        with pytest.raises(RunError, match="exists already"):
            export(tmp_path / "there" / "mine.txt")
        with pytest.raises(RunError, match="cannot be written"):
            export(tmp_path / "there" / "mine.txt" / "below")
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine.txt"]


def test_a_failure_on_the_way_leaves_nothing(own_copy, tmp_path):
    run = own_copy("local")
    (run / "clients" / "coral" / "head.safetensors").write_bytes(b"broken")
    with pytest.raises(AdapterError, match="damaged"):
        export_clients(run, "lora", tmp_path / "out" / "all")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_that_is_not_finished_or_no_run_is_refused(own_copy, tmp_path):
    run = own_copy("local")
    (run / "summary.json").unlink()
    with pytest.raises(RunError, match=r"not finished.*--resume"):
        export_client(run, "amber", "lora", tmp_path / "new")
    with pytest.raises(RunError, match="no run here"):
        export_client(run / "clients" / "amber", "amber", "lora", tmp_path / "new")


def test_a_moved_base_is_checked_and_written_down(run_of, tiny_encoder, tmp_path):
    moved = Path(shutil.copytree(tiny_encoder, tmp_path / "moved"))
    folder = export_client(run_of("ce-lora"), "amber", "lora", tmp_path / "new", str(moved))
    for name, key in (("adapter_config.json", "base_model_name_or_path"), ("classifier.json", "base_model")):
        assert json.loads((folder / name).read_text(encoding="utf-8"))[key] == str(moved)
    assert f"BASE = {str(moved)!r}" in (folder / "README.md").read_text(encoding="utf-8")
    weights = {name: tensor + 1e-3 for name, tensor in load_file(moved / "model.safetensors").items()}
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="other weights"):
        export_client(run_of("ce-lora"), "amber", "lora", tmp_path / "second", str(moved))


def test_a_base_by_a_relative_path_is_found_from_elsewhere(toy_values, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_encoder.parent)
    values = toy_values(method="local", rounds=1, model={"name": f"./{tiny_encoder.name}"})
    done = trifed.run(make_config(values), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    folder = export_client(done.path, "amber", "lora", tmp_path / "out")
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == tiny_encoder
    assert json.loads((folder / "classifier.json").read_text())["base_model"] == str(tiny_encoder)
    assert str(tiny_encoder) in (folder / "README.md").read_text()


def test_the_cards_header_is_what_a_hub_reads(own_copy, tiny_encoder, tmp_path):
    run = own_copy("local")
    config = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(config.replace(str(tiny_encoder), "someone/small-encoder"), encoding="utf-8")
    for form, library in (("lora", "peft"), ("merged", "transformers")):
        card = ModelCard.load(export_client(run, "amber", form, tmp_path / form, str(tiny_encoder)) / "README.md")
        assert card.data.to_dict() == {
            "library_name": library,
            "pipeline_tag": "text-classification",
            "base_model": "someone/small-encoder",
            "tags": ["trifed", "federated-learning"],
        }


def test_a_model_of_two_texts_says_so_in_its_snippet(own_copy, tmp_path, run_cards):
    run = own_copy("local")
    config = (run / "config.toml").read_text(encoding="utf-8")
    changed = config.replace('text = "text"', 'text = "text"\ntext_pair = "other"')
    assert changed != config
    (run / "config.toml").write_text(changed, encoding="utf-8")
    folders = [export_client(run, "amber", form, tmp_path / form) for form in ("lora", "merged")]
    for folder in folders:
        assert 'classify(["' in (folder / "README.md").read_text(encoding="utf-8")
        assert '"], ["' in (folder / "README.md").read_text(encoding="utf-8")  # two texts
    assert set(run_cards(folders)) == set(folders)  # each snippet runs its own example
