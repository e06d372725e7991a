"""Classification with decoders: the last token is read, whatever padding stands behind it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from trifed import make_config, run
from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings
from trifed.data import text_examples
from trifed.export.export import export_client
from trifed.tasks import TASKS

TASK = TASKS["text-classification"]
KINDS = ["llama", "gpt2"]


def values_of(folder, toy_table, **changes):
    values = {
        "name": "toy",
        "rounds": 1,
        "method": "local",
        "controls": False,
        "model": {"name": str(folder), "max_length": 64, "pooling": "last"},
        "adapter": {"rank": 4},
        "baselines": [],
        "data": {"source": str(toy_table), "clients": {"split": "column", "column": "site"}},
        "training": {"batch_size": 8, "steps": 3, "precision": "fp32", "device": "cpu"},
    }
    return {**values, **changes}


@pytest.mark.parametrize("kind", KINDS)
def test_the_features_are_those_of_the_last_token(kind, tiny_language):
    base = TASK.load(str(tiny_language(kind)))
    model = TASK.build(base.model, base, ["a", "b"], ModelSettings(pooling="last")).eval()
    texts = ["short", "a longer text"]
    data = TASK.encode(base, text_examples(texts, None, np.zeros(2, np.int64)), ModelSettings(max_length=64))
    with torch.no_grad():
        found = model.features(data.batch(np.arange(2), torch.device("cpu")))
        for row, ids in enumerate(data.ids):
            alone = base.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["lora", "merged"])
def test_a_run_is_exported_with_code_that_computes_the_same(
    kind, form, tiny_language, toy_table, tmp_path, run_card
):
    done = run(make_config(values_of(tiny_language(kind), toy_table)), tmp_path / "run")
    folder = export_client(done.path, "amber", form)
    texts = ["invoice refund", "a"]
    expected = done.client("amber").probabilities_of({"text": texts})
    found = json.loads(run_card(folder, f"classify({texts!r}).tolist()"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_positions_that_a_decoder_lacks_are_refused(tiny_language):
    base = TASK.load(str(tiny_language("llama")))
    rows = text_examples(["a" * 300], None, np.zeros(1, np.int64))
    with pytest.raises(ModelError, match=r"model.max_length: got 400 .* expected at most 128"):
        TASK.encode(base, rows, ModelSettings(max_length=400))


def test_poolings_that_make_no_sense_are_refused(tiny_language, tiny_vision):
    base = TASK.load(str(tiny_language("llama")))
    for pooling, says in (("cls", "has read nothing of the text"), ("pooler", "has no pooler")):
        with pytest.raises(ModelError, match=says):
            TASK.build(base.model, base, ["a"], ModelSettings(pooling=pooling))
    images = TASKS["image-classification"]
    vision = images.load(str(tiny_vision("vit")))
    with pytest.raises(ModelError, match="no last token"):
        images.build(vision.model, vision, ["a"], ModelSettings(pooling="last"))
