"""Embeddings of added tokens that train beside the adapter: at each client by itself, and into its exports."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

import trifed
from trifed.common.errors import ModelError
from trifed.config.run import make_config
from trifed.export.export import export_client
from trifed.federation.run_folder import RunFolder
from trifed.tasks import TASKS
from trifed.tasks.base_model import quiet_transformers

TOKENS = ["<vip>", "<bot>"]


@pytest.fixture(scope="module")
def grown(tiny_encoder, tmp_path_factory):
    """The tiny encoder with two tokens more, as a user adds them."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(tiny_encoder, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(TOKENS)
    tokenizer.save_pretrained(folder)
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(1)
        model = BertModel.from_pretrained(folder)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def done(grown, toy_table, toy_values, tmp_path_factory):
    """`done("own-prior")`: a finished run whose texts begin with one of the new tokens."""
    home = tmp_path_factory.mktemp("token-runs")
    with toy_table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (home / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label", "site"])
        writer.writeheader()
        writer.writerows({**row, "text": f"{TOKENS[n % 2]} {row['text']}"} for n, row in enumerate(rows))
    known = {}

    def get(method):
        if method not in known:
            values = toy_values(
                method=method,
                rounds=2,
                model={"name": str(grown)},
                adapter={"train_tokens": TOKENS},
                data={"source": str(home / "t.csv")},
                privacy={"few_tokens": "allow"},
            )
            known[method] = trifed.run(make_config(values), home / method)
        return known[method]

    return get


def embeddings(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    [found] = [tensor for name, tensor in tensors.items() if "token_adapter" in name]
    return found


@pytest.mark.parametrize("method", ["fedavg-lora", "own-prior", "ce-lora"])
def test_each_client_trains_its_own_embeddings_and_sends_none(method, done, grown):
    result = done(method)
    before = BertModel.from_pretrained(grown).embeddings.word_embeddings.weight.detach()[-2:]
    one, other = (embeddings(result.path / "clients" / name) for name in ("amber", "basil"))
    assert one.shape == (2, 32) and one.dtype == torch.float32
    for first, second in ((one, before), (one, other), (other, before)):
        assert ((first - second).abs().sum(1) > 1e-4).all()
    events = RunFolder(result.path).events()
    sent = {name for event in events if event["event"] == "trained" for name in event["up"]}
    assert sent and not any("token" in name for name in sent)


@pytest.mark.parametrize(("method", "form"), [
    ("fedavg-lora", "lora"), ("own-prior", "lora"), ("own-prior", "tri-matrix"), ("own-prior", "merged"),
])  # fmt: skip
def test_exports_hold_them_in_pefts_own_format(method, form, done, tmp_path, run_card):
    result, texts = done(method), ["<vip> invoice refund", "<bot> parcel"]
    folder = export_client(result.path, "amber", form, tmp_path / "out")
    expected = result.client("amber").predict_proba(texts)
    found = json.loads(run_card(folder, f"classify({texts!r}).tolist()"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trifed.load_client(folder).predict_proba(texts), expected, rtol=1e-4, atol=1e-5)
    if form != "merged":
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["trainable_token_indices"] == [190, 191]
        torch.testing.assert_close(embeddings(folder), embeddings(result.path / "clients" / "amber"))


def test_an_interrupted_run_has_the_same_embeddings(done, tmp_path):
    result = done("fedavg-lora")
    copy = shutil.copytree(result.path, tmp_path / "run")
    again = trifed.resume(copy, from_round=1)
    for name in ("amber", "coral"):
        torch.testing.assert_close(
            embeddings(again.path / "clients" / name), embeddings(result.path / "clients" / name)
        )


@pytest.mark.parametrize(
    ("tokens", "says"),
    [(["<vpi>"], r"no token '<vpi>' \(did you mean '<vip>'\?\)"), (["invoice", ""], "no token ''")],
)
def test_a_token_that_the_tokenizer_lacks_is_named(tokens, says, grown, make_bench):
    with pytest.raises(ModelError, match=rf"adapter\.train_tokens: .*{says}"):
        make_bench("fedavg-lora", model={"name": str(grown)}, adapter={"train_tokens": tokens})


def test_a_token_without_an_embedding_is_named(tiny_encoder, tmp_path, make_bench):
    folder = shutil.copytree(tiny_encoder, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(TOKENS)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'<vip>' is token 190.*resize_token_embeddings"):
        make_bench("fedavg-lora", model={"name": str(folder)}, adapter={"train_tokens": TOKENS})


def test_a_model_of_images_has_no_tokens(tiny_vision, toy_values):
    from trifed.federation.training.shared_model import build_shared_model
    from trifed.methods import METHODS

    folder = tiny_vision("vit")
    config = make_config(toy_values(task="image-classification", model={"name": str(folder)},
                                    adapter={"train_tokens": ["a"]}))  # fmt: skip
    task, given = TASKS["image-classification"], (config.model, config.adapter, config.training)
    with pytest.raises(ModelError, match=r"adapter\.train_tokens: a 'vit' model"):
        build_shared_model(task.load(str(folder)), METHODS["local"], ["a"], 0, given, task)


def test_the_whole_base_trains_its_embeddings_anyway(grown, make_bench):
    shared_model = make_bench("fedavg-full", model={"name": str(grown)}, adapter={"train_tokens": TOKENS})
    assert "embeddings.word_embeddings.weight" in shared_model.parameters
