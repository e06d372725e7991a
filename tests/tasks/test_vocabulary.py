"""Texts whose tokens a model has no embedding of, and texts without any token, in every task that reads text."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings
from trifed.data import Examples
from trifed.tasks import TASKS
from trifed.tasks.tokens import check_vocabulary

ASKS = {
    "prompts": {"prompt": ["<ask> a"], "answer": ["b"]},
    "texts": {"text": ["a <ask> b"]},
    "conversations": {
        "messages": [json.dumps([{"role": "user", "content": "<ask>"}, {"role": "assistant", "content": "b"}])]
    },
}


@pytest.fixture
def added(tiny_language):
    """A language model whose tokenizer got a token after training; the model did not."""
    base = TASKS["causal-lm"].load(str(tiny_language(chat=True)))
    base.processor.add_special_tokens({"additional_special_tokens": ["<ask>"]})
    return base


@pytest.mark.parametrize("kind", ASKS)
def test_a_token_that_a_language_model_lacks(kind, added, tiny_language):
    rows = Examples(ASKS[kind], np.zeros(1, np.int64))
    settings = ModelSettings(name=str(tiny_language(chat=True)), max_length=64)
    with pytest.raises(ModelError, match=r"got the token 258 from its tokenizer, expected one of the model's 258"):
        TASKS["causal-lm"].encode(added, rows, settings)


def test_a_token_that_an_encoder_lacks(tiny_encoder):
    base = TASKS["text-classification"].load(str(tiny_encoder))
    base.processor.add_special_tokens({"additional_special_tokens": ["<ask>"]})
    rows = Examples({"text": ["invoice <ask>"]}, np.zeros(1, np.int64))
    with pytest.raises(ModelError, match=r"expected one of the model's 190 tokens"):
        TASKS["text-classification"].encode(base, rows, ModelSettings(name=str(tiny_encoder)))


def test_a_text_without_any_token_is_named(tiny_encoder, monkeypatch):
    base = TASKS["text-classification"].load(str(tiny_encoder))
    monkeypatch.setattr(
        type(base.processor), "__call__", lambda self, texts, **options: {"input_ids": [[] for _ in texts]}
    )
    rows = Examples({"text": ["\U0001f600"]}, np.zeros(1, np.int64))
    with pytest.raises(ModelError, match=r"makes no token of the text '.U0001f600'"):
        TASKS["text-classification"].encode(base, rows, ModelSettings(name=str(tiny_encoder)))


def test_a_tower_of_texts_has_its_own_vocabulary(tiny_towers):
    from transformers import AutoModel

    folder = tiny_towers("clip")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    check_vocabulary(model, [[len(tokenizer) - 1]])
    with pytest.raises(ModelError, match="expected one of the model's"):
        check_vocabulary(model, [[model.config.text_config.vocab_size]])
