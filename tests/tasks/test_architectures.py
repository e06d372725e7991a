"""Every kind of encoder and language model that a message names: run, cost, export, from a small configuration."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from test_cli_help import call
from trifed import make_config, run
from trifed.adapters.attach import resolve_targets
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ModelError
from trifed.export.export import export_client

USUAL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 80, "pad_token_id": 0, "vocab_size": 190,
}  # fmt: skip
ENCODERS = {
    "bert": {},
    "roberta": {"type_vocab_size": 2},
    "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 32},
    "mpnet": {},
    "modernbert": {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 2},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
}
LANGUAGE = {
    "llama": ["q_proj", "v_proj"],
    "mistral": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
    "gemma3_text": ["q_proj", "v_proj"],
    "phi": ["q_proj", "v_proj"],
    "phi3": ["qkv_proj"],
    "gpt2": ["c_attn"],
}
ENCODER_DECODERS = {
    "t5": ["q", "v"],
    "mt5": ["q", "v"],
    "bart": ["q_proj", "v_proj"],
    "pegasus": ["q_proj", "v_proj"],
}
WITHOUT_POOLER = ["distilbert", "modernbert", "deberta-v2", "electra"]


@pytest.fixture(scope="module")
def encoder(tiny_encoder, tmp_path_factory):
    """`encoder("mpnet")`: a folder with a random encoder of that kind that reads the toy table's words."""

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        shutil.copytree(tiny_encoder, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").unlink()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = AutoConfig.for_model(kind, **{**USUAL, **ENCODERS[kind]})
            AutoModel.from_config(config).save_pretrained(folder)
        if kind in ("distilbert", "modernbert", "mpnet"):  # they take no kinds of tokens
            path = folder / "tokenizer_config.json"
            told = json.loads(path.read_text())
            path.write_text(json.dumps({**told, "model_input_names": ["input_ids", "attention_mask"]}))
        return folder

    return make


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_runs_with_the_defaults_costs_and_is_exported(
    kind, encoder, toy_values, tmp_path, capsys, monkeypatch
):
    folder = encoder(kind)
    done = run(make_config(toy_values(rounds=1, model={"name": str(folder)})), tmp_path / "run")
    assert done.accuracy["mean"] is not None
    assert call(capsys, monkeypatch, "cost", folder).code == 0
    written = export_client(done.path, "amber", "merged")
    assert (written / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "albert"])
def test_an_encoder_tags_words_costs_and_is_exported(kind, encoder, tmp_path, capsys, monkeypatch):
    rows = [{"text": f"word{n:03d} invoice word001", "label": "O B-X O", "site": "xy"[n % 2]} for n in range(40)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "task": "token-classification", "rounds": 1, "model": {"name": str(encoder(kind)), "max_length": 32},
        "data": {"source": str(tmp_path / "t.jsonl"), "clients": {"split": "column", "column": "site"}},
        "training": {"steps": 2, "precision": "fp32", "device": "cpu"}, "privacy": {"few_tokens": "allow"},
        "metrics": ["f1_entities"],
    }  # fmt: skip
    done = run(make_config(values), tmp_path / "run")
    assert done.summary["metrics"]["f1_entities"]["mean"] is not None
    assert call(capsys, monkeypatch, "cost", values["model"]["name"]).code == 0
    written = export_client(done.path, "x", "merged")
    native = "AutoModelForTokenClassification" in (written / "README.md").read_text()
    assert native == (kind != "modernbert")  # it has a layer more before its head


@pytest.mark.parametrize("kind", WITHOUT_POOLER)
def test_a_pooler_that_is_not_there_is_refused(kind, encoder, toy_values, tmp_path):
    values = toy_values(rounds=1, model={"name": str(encoder(kind)), "pooling": "pooler"})
    with pytest.raises(ModelError, match=rf"model.pooling: got 'pooler', but a '{kind}' model has no pooler"):
        run(make_config(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_an_encoder_decoder_runs_with_the_defaults_costs_and_is_exported(
    kind, tiny_pairs, tmp_path, capsys, monkeypatch
):
    rows = [{"prompt": f"say {n}", "answer": "ab" * (n % 5), "site": "xy"[n % 2]} for n in range(1, 40)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows if row["answer"]))
    values = {
        "task": "sequence-to-sequence", "rounds": 1, "model": {"name": str(tiny_pairs(kind)), "max_length": 32},
        "data": {"source": str(tmp_path / "t.jsonl"), "clients": {"split": "column", "column": "site"}},
        "training": {"steps": 2, "precision": "fp32", "device": "cpu"}, "adapter": {"rank": 4},
        "privacy": {"few_tokens": "allow"},
    }  # fmt: skip
    done = run(make_config(values), tmp_path / "run")
    assert done.accuracy["mean"] is not None
    assert call(capsys, monkeypatch, "cost", tiny_pairs(kind), "--rank", 4).code == 0
    written = export_client(done.path, "x", "merged")
    assert (written / "model.safetensors").is_file()
    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_pairs(kind))
    assert resolve_targets(base, AdapterSettings()) == ENCODER_DECODERS[kind]
    adapted = json.loads((export_client(done.path, "x", "lora") / "adapter_config.json").read_text())
    assert sorted(adapted["target_modules"]) == ENCODER_DECODERS[kind] and not adapted["exclude_modules"]


@pytest.mark.parametrize("kind", LANGUAGE)
def test_the_default_layers_of_language_models(kind):
    config = AutoConfig.for_model(kind, **{**USUAL, "num_key_value_heads": 2, "head_dim": 8})
    base = AutoModelForCausalLM.from_config(config)
    assert set(resolve_targets(base, AdapterSettings())) & set(LANGUAGE[kind])
