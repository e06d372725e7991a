"""A stock class is used where it computes the same, and only there."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    FunnelConfig,
    FunnelModel,
    RobertaConfig,
    RobertaModel,
)

from trifed.config.settings import ModelSettings
from trifed.export.export import native_classifier
from trifed.federation.client_model import Classifier
from trifed.tasks import TASKS
from trifed.tasks.base_model import LoadedBase
from trifed.tasks.text_classification import TextClassifier

SIZES = {"vocab_size": 190, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS = {
    "albert": lambda: AlbertModel(AlbertConfig(**SIZES, embedding_size=8, intermediate_size=16)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, intermediate_size=16)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=190, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    ),
    "funnel": lambda: FunnelModel(
        FunnelConfig(
            vocab_size=190, d_model=16, n_head=2, d_head=8, d_inner=16, block_sizes=[1], num_decoder_layers=1
        )
    ),
}


def classifier(name, pooling, tokenizer, labels=3):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = MODELS[name]().eval()
        model = TextClassifier(encoder, 16, labels, pooling)
        torch.nn.init.normal_(model.head.weight)
    base = LoadedBase(encoder, tokenizer, "here", "fingerprint")
    settings = ModelSettings(pooling=pooling, max_length=32)
    return Classifier(TASKS["text-classification"], model, base, settings, [f"label {n}" for n in range(labels)])


@pytest.fixture
def tokenizer(tiny_encoder):
    return AutoTokenizer.from_pretrained(tiny_encoder, model_input_names=["input_ids", "attention_mask"])


def test_albert_reads_its_pooler_as_we_do(tokenizer):
    stock = native_classifier(classifier("albert", "pooler", tokenizer))
    assert type(stock).__name__ == "AlbertForSequenceClassification"
    assert stock.config.id2label == {0: "label 0", 1: "label 1", 2: "label 2"}
    assert stock.config.label2id == {"label 0": 0, "label 1": 1, "label 2": 2}


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("albert", "mean"),  # it pools otherwise
        ("albert", "cls"),
        ("distilbert", "cls"),  # it has the same weights and one dense layer more
        ("distilbert", "mean"),
        ("roberta", "pooler"),  # its head has two layers
        ("funnel", "mean"),
    ],
)
def test_a_class_that_computes_something_else_is_not_used(name, pooling, tokenizer):
    assert native_classifier(classifier(name, pooling, tokenizer)) is None
