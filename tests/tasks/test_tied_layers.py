"""Adapters on an output layer that shares its weight with the embeddings: the export computes what the run did."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from trifed import make_config, run
from trifed.export.export import export_client
from trifed.federation.client_model import open_client


@pytest.fixture(scope="module")
def tied(tiny_language, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    shutil.copytree(tiny_language(), folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(folder, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["local", "ce-lora", "fedavg-full"])
def test_a_merged_model_has_the_logits_of_the_trained_one(method, tied, tmp_path):
    table = tmp_path / "t.jsonl"
    rows = [{"ask": f"number {i}?", "tell": "even" if i % 2 else "odd", "site": "ab"[i % 2]} for i in range(40)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "baselines": [], "task": "causal-lm",
        "rounds": 1,
        "method": method,
        "model": {"name": str(tied), "max_length": 96},
        "data": {
            "source": str(table), "prompt": "ask", "answer": "tell",
            "clients": {"split": "column", "column": "site"},
        },
        "adapter": {"rank": 4, "target_modules": ["q_proj", "lm_head"]},
        "training": {"learning_rate": 0.05, "steps": 5, "precision": "fp32", "device": "cpu"},
        "privacy": {"few_tokens": "allow"},
    }  # fmt: skip
    folder = run(make_config(values), tmp_path / "run").path
    merged = AutoModelForCausalLM.from_pretrained(export_client(folder, "a", "merged")).eval()
    trained = open_client(folder / "clients" / "a", None).model.encoder.eval()
    tokens = torch.from_numpy(np.random.default_rng(0).integers(2, 250, (2, 12)))
    with torch.no_grad():
        ours, theirs, plain = (
            model(input_ids=tokens).logits
            for model in (trained, merged, AutoModelForCausalLM.from_pretrained(tied))
        )
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert (ours - plain).abs().max() > 0.01  # it has learned something


@pytest.mark.parametrize("kind", ["t5", "bart", "mt5"])
def test_so_has_a_merged_encoder_decoder(kind, tiny_pairs, tmp_path):
    """T5's embeddings, output layer and scale of outputs hang together in its configuration."""
    table, tied = tmp_path / "t.jsonl", tiny_pairs(kind)
    rows = [
        {"prompt": f"number {i}?", "answer": "even" if i % 2 else "odd", "site": "ab"[i % 2]} for i in range(40)
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "sequence-to-sequence",
        "rounds": 1,
        "method": "local",
        "model": {"name": str(tied), "max_length": 64},
        "data": {"source": str(table), "clients": {"split": "column", "column": "site"}},
        "adapter": {"rank": 4, "target_modules": ["q" if kind != "bart" else "q_proj", "lm_head"]},
        "training": {"learning_rate": 0.05, "steps": 5, "precision": "fp32", "device": "cpu"},
    }
    folder = run(make_config(values), tmp_path / "run").path
    merged = AutoModelForSeq2SeqLM.from_pretrained(export_client(folder, "a", "merged")).eval()
    trained = open_client(folder / "clients" / "a", None).model.encoder.eval()
    rng = np.random.default_rng(0)
    tokens, answers = (torch.from_numpy(rng.integers(3, 250, (2, width))) for width in (12, 5))
    with torch.no_grad():
        ours, theirs, plain = (
            model(input_ids=tokens, decoder_input_ids=answers).logits
            for model in (trained, merged, AutoModelForSeq2SeqLM.from_pretrained(tied))
        )
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert (ours - plain).abs().max() > 0.01  # it has learned something
