"""What a person may name: a run, an exported model, a folder of such, a client's folder inside a run."""

from __future__ import annotations

import json
import shutil

import pytest

from trifed.common.errors import AdapterError, RunError
from trifed.export.export import export_client, export_clients
from trifed.export.locate import Columns, locate_model, locate_models

NAMES = ["amber", "basil", "coral"]


@pytest.fixture(scope="module")
def lora(run_of, tmp_path_factory):
    """All clients, exported as plain LoRA."""
    return export_clients(run_of("ce-lora"), "lora", tmp_path_factory.mktemp("found") / "lora")


def test_a_run_holds_its_clients_in_its_order(run_of):
    run = run_of("ce-lora")
    assert [found.name for found in locate_models(run, "all")] == NAMES
    assert locate_model(run, "basil").folder == run / "clients" / "basil"


def test_one_client_is_chosen_or_the_choice_is_shown(run_of, lora):
    for place in (run_of("ce-lora"), lora):
        with pytest.raises(RunError, match="--client: amber, basil, coral"):
            locate_models(place, None)
        with pytest.raises(RunError, match=r"'zzz'.*amber, basil, coral"):
            locate_models(place, "zzz")
        with pytest.raises(RunError, match="--client all"):
            locate_model(place, "all")


def test_one_exported_model_needs_no_choice_and_keeps_its_clients_name(lora, tmp_path):
    moved = shutil.copytree(lora / "coral", tmp_path / "elsewhere")
    for client in (None, "coral", "all"):
        assert (locate_model(moved, client).name, locate_model(moved, client).folder) == ("coral", moved)
    with pytest.raises(RunError, match=r"'amber'.*: coral"):
        locate_model(moved, "amber")


def test_the_columns_of_the_run_travel_with_the_model(own_copy, tmp_path):
    run = own_copy("local")
    config = run / "config.toml"
    written = config.read_text(encoding="utf-8")
    changed = written.replace('text = "text"', 'text = "message"').replace('label = "label"', 'label = "queue"')
    assert changed != written
    config.write_text(changed, encoding="utf-8")
    folder = export_client(run, "amber", "lora", tmp_path / "lora")
    for place, client in ((run, "amber"), (folder, None), (run / "clients" / "amber", None)):
        assert locate_model(place, client).columns == Columns("message", None, "queue")
    alone = shutil.copytree(run / "clients" / "amber", tmp_path / "alone")
    assert locate_model(alone, None).columns == Columns("text", None, "label")


def test_what_holds_no_model_is_refused(tmp_path, lora):
    with pytest.raises(RunError, match="no such folder"):
        locate_models(tmp_path / "nothing", None)
    with pytest.raises(RunError, match=str(tmp_path)):
        locate_models(tmp_path, None)
    damaged = shutil.copytree(lora / "amber", tmp_path / "damaged")
    for content in ("{", "[]", json.dumps({"columns": {"words": "text"}})):
        (damaged / "classifier.json").write_text(content, encoding="utf-8")
        with pytest.raises(AdapterError, match=r"classifier\.json: damaged"):
            locate_models(damaged, None)
