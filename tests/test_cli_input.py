"""Data, models and folders that cannot be used: one message that says where and what to do, exit code 2."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil

import pytest
import tomli_w
import torch
import typer
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, T5Config, T5Model

from test_cli_help import call, finished_run, tree
from trifed.cli.app import app
from trifed.data.readers import FLAGS
from trifed.federation.run_folder import RunFolder


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path, toy_values):
    """`refused(FLAGS)`: the message of a run of the toy configuration; it must leave nothing behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(tomli_w.dumps(toy_values(rounds=1)), encoding="utf-8")

    def check(*flags):
        before = tree(tmp_path)
        said = call(capsys, monkeypatch, "run", "my.toml", *flags)
        assert said.code == 2
        assert "Traceback" not in said.out + said.err
        assert said.err.startswith("error: ")
        assert tree(tmp_path) == before
        return said.err

    return check


@pytest.fixture
def rows(toy_table):
    with toy_table.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def write(tmp_path):
    """`write(rows)`: a table t.csv in the test's folder; returns its name."""

    def to_csv(rows, name="t.csv"):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        return name

    return to_csv


def says(message, *words):
    for word in words:
        assert word in message
    return True


# -- the table


def test_no_such_table(refused):
    assert says(refused("--data", "nosuch.csv"), "data.source", "nosuch.csv", "no such file")
    assert says(refused("--test", "nosuch.csv"), "data.test", "nosuch.csv", "no such file")


def test_a_table_without_rows(refused, write, tmp_path, rows):
    assert says(refused("--data", write(rows[:1])), "t.csv", "no rows")
    (tmp_path / "t.csv").write_text("")
    assert says(refused("--data", "t.csv"), "t.csv", "empty", "header")


@pytest.mark.parametrize("setting", ["text", "label", "column"])
def test_a_column_that_is_not_there(refused, write, rows, setting):
    message = refused("--data", write(rows), f"--{setting}", "sit" if setting == "column" else f"{setting}s")
    full = {"text": "data.text", "label": "data.label", "column": "data.clients.column"}[setting]
    assert says(message, "t.csv", "no column", "Did you mean", "'text', 'label', 'site'", full, f"(--{setting} ")


def test_the_flags_that_messages_name_are_flags_of_run():
    run = typer.main.get_command(app).commands["run"]
    known = {flag for option in run.params for flag in option.opts}
    assert set(FLAGS.values()) <= known


@pytest.mark.parametrize(("place", "words"), [(0, ["text", "empty"]), (1, ["label", "missing"]), (2, ["client"])])
def test_an_empty_cell_is_named_by_its_row(refused, write, rows, place, words):
    rows[7][place] = "  "
    assert says(refused("--data", write(rows)), "t.csv, row 7", *words)


def test_a_table_that_is_not_utf8(refused, tmp_path):
    (tmp_path / "t.csv").write_bytes("text,label,site\ncafé,billing,amber\n".encode("latin-1"))
    assert says(refused("--data", "t.csv"), "t.csv", "not UTF-8", "line 2")


def test_labels_that_are_fractions(refused, write, rows):
    changed = [rows[0], *([text, "2.5" if label == "login" else "1.0", site] for text, label, site in rows[1:])]
    assert says(refused("--data", write(changed)), "2.5", "whole number")


def test_a_label_that_only_the_test_set_has(refused, write):
    test = write([["text", "label", "site"], ["a new word", "weather", "amber"]], "test.csv")
    assert says(refused("--test", test), "weather", "no client's training data")


def test_a_client_with_one_label_or_too_few_examples(refused, write, rows):
    one = [row for row in rows if row[2] != "basil" or row[1] == "delivery"]
    assert says(refused("--data", write(one)), "one label only: basil", "data.allow_single_class = true")
    few = [*rows, ["a lonely invoice", "billing", "dust"]]
    assert says(refused("--data", write(few)), "dust (1)", "data.clients.min_examples", "data.allow_empty_clients")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_table_that_may_not_be_read(refused, write, rows, tmp_path):
    (tmp_path / write(rows)).chmod(0)
    assert says(refused("--data", "t.csv"), "t.csv", "cannot be read")


# -- the model


@pytest.fixture
def copied(tiny_encoder, tmp_path):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_encoder, tmp_path / "model")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_that_is_not_there(refused, tmp_path):
    assert says(refused("--model", "./nosuch"), "model.name", "no folder './nosuch'")
    assert says(refused("--model", "nosuch"), "model.name", "'nosuch'", "hub name", "'demo'")
    (tmp_path / "folder").mkdir()
    assert says(refused("--model", "folder"), "model.name", "config.json")
    assert says(refused("--model", "my.toml"), "model.name", "'my.toml'")


@pytest.mark.parametrize("content", [b"", b"{x", b"{}", b"[]"])
def test_a_model_whose_configuration_is_none(refused, copied, content):
    (copied / "config.json").write_bytes(content)
    assert says(refused("--model", "model"), "model.name: 'model' ")


def test_a_model_whose_configuration_is_wrong(refused, copied):
    change_config(copied, hidden_size="big")
    assert says(refused("--model", "model"), "model.name", "cannot be read")
    change_config(copied, hidden_size=32, model_type="nonesuch")
    assert says(refused("--model", "model"), "model.name", "nonesuch")
    change_config(copied, model_type="bert", num_attention_heads=5)
    assert says(refused("--model", "model"), "model.name", "cannot be loaded")


@pytest.mark.parametrize("keep", [None, 0, 5000, -100], ids=["absent", "empty", "cut short", "a little short"])
def test_a_model_whose_weights_are_damaged(refused, copied, keep):
    weights = copied / "model.safetensors"
    if keep is None:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:keep])
    assert says(refused("--model", "model"), "model.name: 'model'", "cannot be loaded", "fetch the model again")


def test_pickled_weights_are_not_read(refused, copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    assert says(refused("--model", "model"), "model.name: 'model'", "pickle", "safetensors")


def test_a_model_whose_weights_do_not_fill_it(refused, copied):
    change_config(copied, num_hidden_layers=3)
    assert says(refused("--model", "model"), " 16 of the tensors", "encoder.layer.2.")
    change_config(copied, num_hidden_layers=2, intermediate_size=48)
    assert says(refused("--model", "model"), "another size", "intermediate.dense", "matching config.json")


def test_a_model_without_its_tokenizer(refused, copied):
    for file in copied.glob("tokenizer*"):
        file.unlink()
    assert says(refused("--model", "model"), "model.name", "tokenizer")


def test_a_model_with_the_tokenizer_of_a_larger_one(refused, copied):
    torch.manual_seed(0)
    small = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(small).save_pretrained(copied)
    assert says(refused("--model", "model"), "model.name", "50 tokens")


def test_a_model_that_reads_and_writes(refused, tmp_path):
    T5Model(
        T5Config(vocab_size=30, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0)
    ).save_pretrained(tmp_path / "t5")
    assert says(refused("--model", "t5"), "'t5' model", "'text-classification'", "BERT", "Llama")


def test_a_decoder_without_its_tokenizer(refused, tmp_path):
    GPT2Model(
        GPT2Config(vocab_size=30, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(tmp_path / "gpt2")
    assert says(refused("--model", "gpt2"), "the tokenizer of 'gpt2' has no words")


def test_texts_longer_than_the_model_reads(refused, write, rows):
    rows[5][0] = "invoice " * 100
    message = refused("--data", write(rows), "--set", "model.max_length=90")
    assert says(message, "model.max_length: got 90", "90 tokens", "at most 64")


# -- the adapter, the device


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("adapter.target_modules=['quer']", ["'quer'", "dense, key, query, value"]),
        ("adapter.target_modules=[]", ["empty list", "dense, key, query, value"]),
        ("adapter.rank=33", ["33", "at most 32"]),
    ],
)
def test_an_adapter_that_does_not_fit(refused, setting, words):
    assert says(refused("--set", setting), "adapter.", *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(refused):
    assert says(refused("--set", "training.device=cuda"), "training.device: got 'cuda'", "'cpu' or 'auto'")


# -- the run's folder


def test_a_run_that_exists(refused, tmp_path):
    for make in (lambda path: path.mkdir(parents=True), lambda path: (path / "x").write_text("")):
        make(tmp_path / "runs" / "toy")
    assert says(refused(), "runs/toy", "exists", "--name", "trifed run --resume runs/toy")
    (tmp_path / "runs" / "file").write_text("")
    assert says(refused("--name", "file"), "runs/file", "exists")


def test_a_place_that_cannot_hold_runs(refused, tmp_path):
    (tmp_path / "afile").write_text("")
    assert says(refused("--runs", "afile"), "afile", "not a folder", "--runs")
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        assert says(refused("--runs", "locked"), "locked", "not writable", "--runs")


def test_a_disk_that_fills_up(capsys, monkeypatch, tmp_path, refused):
    kept = RunFolder.save_checkpoint

    def full(*args, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint.safetensors")

    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    said = call(capsys, monkeypatch, "run", "my.toml")
    assert said.code == 2
    assert says(said.err, "checkpoint.safetensors: No space left", "trifed run --resume runs/toy")
    monkeypatch.setattr(RunFolder, "save_checkpoint", kept)
    assert call(capsys, monkeypatch, "run", "--resume", "runs/toy").code == 0


# -- going on with a run that was changed


@pytest.fixture(scope="module")
def finished(tmp_path_factory, toy_values):
    """The folder of a run of one round."""
    return finished_run(toy_values(rounds=1), tmp_path_factory.mktemp("finished") / "toy")


@pytest.fixture
def half_done(capsys, monkeypatch, tmp_path, finished):
    """A run after its only round, as if it had been broken off before its summary."""
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(finished, tmp_path / "runs" / "toy")
    (folder / "summary.json").unlink()

    def resume():
        before = (folder / "events.jsonl").read_bytes()
        said = call(capsys, monkeypatch, "run", "--resume", "runs/toy")
        assert said.code == 2
        assert "Traceback" not in said.out + said.err
        assert (folder / "events.jsonl").read_bytes() == before
        return said.err

    return folder, resume


@pytest.mark.parametrize("keep", [0, 3000, -50])
def test_a_damaged_checkpoint(half_done, keep):
    folder, resume = half_done
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    assert says(resume(), "checkpoint.safetensors", "damaged", "--name")


def test_a_configuration_that_was_changed(half_done):
    folder, resume = half_done
    path = folder / "config.toml"
    path.write_text(path.read_text().replace("batch_size = 8", "batch_size = 4"))
    assert says(resume(), "runs/toy", "changed", "--name")
    path.write_text("rounds = ")
    assert says(resume(), "config.toml", "not valid TOML")


def test_a_checkpoint_without_its_event_log(half_done):
    folder, resume = half_done
    (folder / "events.jsonl").write_text("")
    assert says(resume(), "events.jsonl", "shorter")
