"""Exports of language models as servers load them: by PEFT's and transformers' own classes alone."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM
from transformers import AutoTokenizer, GenerationConfig

from trifed import load_writer, make_config, run
from trifed.export.export import export_client
from trifed.federation.client_model import open_client


@pytest.fixture(scope="module")
def folder(tiny_language, tmp_path_factory):
    home = tmp_path_factory.mktemp("served")
    rows = [{"ask": f"number {i}?", "tell": "even" if i % 2 else "odd", "site": "ab"[i % 2]} for i in range(40)]
    (home / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "baselines": [],
        "task": "causal-lm",
        "rounds": 1,
        "method": "ce-lora",
        "model": {"name": str(tiny_language()), "max_length": 96},
        "data": {
            "source": str(home / "t.jsonl"),
            "prompt": "ask",
            "answer": "tell",
            "clients": {"split": "column", "column": "site"},
        },
        "adapter": {"rank": 4},
        "training": {"learning_rate": 0.05, "steps": 3, "precision": "fp32", "device": "cpu"},
        "privacy": {"few_tokens": "allow"},
    }
    return run(make_config(values), home / "run").path


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_a_plain_adapter_is_found_with_its_base_tokenizer_and_generation(folder, tmp_path, monkeypatch):
    export = export_client(folder, "a", "lora")
    monkeypatch.chdir(tmp_path)  # the base is found from elsewhere
    config = json.loads((export / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    model = AutoPeftModelForCausalLM.from_pretrained(export).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert GenerationConfig.from_pretrained(export).eos_token_id == tokenizer.eos_token_id
    trained = open_client(folder / "clients" / "a", None).model.encoder.eval()
    tokens = tokenizer("number 3?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=tokens).logits, trained(input_ids=tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_a_tri_matrix_adapter_carries_its_tokenizer_too(folder):
    export = export_client(folder, "b", "tri-matrix")
    assert AutoTokenizer.from_pretrained(export).vocab_size > 0
    assert (export / "generation_config.json").is_file()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_adapter_of_an_encoder_decoder_is_loaded_by_its_own_class(kind, tiny_pairs, tmp_path, monkeypatch):
    rows = [{"ask": f"number {i}?", "tell": "even" if i % 2 else "odd", "site": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "sequence-to-sequence", "rounds": 1, "method": "ce-lora", "adapter": {"rank": 4},
        "model": {"name": str(tiny_pairs(kind)), "max_length": 64},
        "data": {
            "source": str(tmp_path / "t.jsonl"), "prompt": "ask", "answer": "tell",
            "clients": {"split": "column", "column": "site"},
        },
        "training": {"learning_rate": 0.05, "steps": 3, "precision": "fp32", "device": "cpu"},
        "privacy": {"few_tokens": "allow"},
    }  # fmt: skip
    folder = run(make_config(values), tmp_path / "run").path
    export = export_client(folder, "a", "lora")
    monkeypatch.chdir(tmp_path)
    assert json.loads((export / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(export).eval()
    tokens = AutoTokenizer.from_pretrained(export)("number 3?", return_tensors="pt")["input_ids"]
    start = GenerationConfig.from_pretrained(export).decoder_start_token_id
    trained = open_client(folder / "clients" / "a", None).model.encoder.eval()
    with torch.no_grad():
        ours, theirs = (
            one(input_ids=tokens, decoder_input_ids=torch.tensor([[start, 70, 71]])).logits
            for one in (trained, model)
        )
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_a_merged_model_has_no_empty_head_beside_it_and_still_answers(folder):
    export = export_client(folder, "a", "merged")
    assert not (export / "head.safetensors").exists() and (export / "classifier.json").is_file()
    assert json.loads((export / "classifier.json").read_text())["base_model"].count("/") == 0
    assert len(load_writer(export).answer(["number 3?"], tokens=2)) == 1
