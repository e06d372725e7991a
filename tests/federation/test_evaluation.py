"""Evaluation of a model and the tokens that it reads, against what can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from local_training import CPU, EMPTY, EXAMPLES, TEXTS, chosen, train

from trifed.data import text_examples
from trifed.federation.training.evaluation import embed, evaluate, length_order
from trifed.tasks.text_classification import encode


def by_hand(shared_model, data):
    """Logits of each row on its own, unpadded: mean over tokens, then the head, in NumPy."""
    head = shared_model.model.head
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    logits = []
    for ids in data.ids:
        with torch.no_grad():
            hidden = shared_model.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        logits.append(weight @ hidden.mean(0) + bias)
    return np.array(logits)


def test_evaluation_equals_a_computation_by_hand_at_any_batch_size(shared_model, data):
    train(shared_model, data, chosen(epochs=3))
    shared_model.model.eval()
    logits = by_hand(shared_model, data)
    shifted = logits - logits.max(1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    loss = -logp[np.arange(12), data.labels].mean()
    shared_model.model.train()  # evaluation switches dropout off by itself
    for size in (1, 5, 12, 100):
        scores = evaluate(shared_model.model, data, chosen(eval_batch_size=size))
        assert scores.loss == pytest.approx(loss, rel=1e-5)
        assert np.array_equal(scores.predictions, logits.argmax(1))
        assert scores.accuracy == (logits.argmax(1) == data.labels).mean()
        assert scores.examples == 12
    assert len(set(scores.predictions.tolist())) > 1  # predictions in the wrong order would show


def test_without_examples_scores_are_nan(shared_model):
    scores = evaluate(shared_model.model, shared_model.encode(EMPTY), chosen())
    assert math.isnan(scores.loss) and math.isnan(scores.accuracy)
    assert scores.examples == 0 and scores.predictions.shape == (0,)
    assert embed(shared_model.model, shared_model.encode(EMPTY), chosen()).shape == (0, 32)


def test_the_pooled_mean_leaves_padding_out(shared_model, data):
    shared_model.model.eval()
    together = embed(shared_model.model, data, chosen(eval_batch_size=12))
    for row, ids in enumerate(data.ids):
        with torch.no_grad():
            hidden = shared_model.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        np.testing.assert_allclose(together[row], hidden.mean(0).numpy(), rtol=1e-4, atol=1e-5)


def test_first_token_and_pooler_read_what_they_say(make_bench):
    for pooling in ("cls", "pooler"):
        shared_model = make_bench("local", model={"pooling": pooling})
        data = shared_model.encode(EXAMPLES)
        shared_model.model.eval()
        batch = data.batch(np.arange(12), CPU)
        with torch.no_grad():
            output = shared_model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            expected = output.last_hidden_state[:, 0] if pooling == "cls" else output.pooler_output
            torch.testing.assert_close(shared_model.model.features(batch), expected)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_order_of_length_has_every_row_once(shared_model, n):
    rows = length_order(shared_model.encode(text_examples(TEXTS[:n], None, np.zeros(n, np.int64))), 3)
    assert sorted(row for batch in rows for row in batch) == list(range(n))


# -- tokens


def test_examples_that_are_cut_are_counted(shared_model):
    # [CLS], i + 1 words, [SEP]: i + 3 tokens. Over 8 are those with i ≥ 6, which are 6 of 12.
    short = encode(shared_model.base, EXAMPLES, shared_model.settings.model_copy(update={"max_length": 8}))
    assert short.cut == 6
    assert short.lengths.tolist() == [min(i + 3, 8) for i in range(12)]
    assert shared_model.encode(EXAMPLES).cut == 0
    longest = text_examples(["word001 " * 200], None, np.zeros(1, np.int64))  # over the model's own 64 too
    assert encode(shared_model.base, longest, shared_model.settings.model_copy(update={"max_length": 32})).cut == 1


def test_a_batch_masks_its_padding(shared_model, data):
    batch = data.batch(np.array([0, 6, 2]), CPU)
    assert batch["input_ids"].shape == (3, 10)  # 9 tokens at most, rounded up to a multiple of 2
    assert batch["attention_mask"].sum(1).tolist() == [3, 9, 5]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == shared_model.base.processor.pad_token_id).all()
    assert batch["labels"].tolist() == [0, 0, 2]


def test_second_texts_are_told_apart(shared_model):
    pairs = text_examples(["invoice refund", "parcel"], ["courier", "word001 word002"], np.zeros(2, np.int64))
    data = shared_model.encode(pairs)
    assert data.more["token_type_ids"] == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    batch = data.batch(np.arange(2), CPU)
    assert batch["token_type_ids"].sum(1).tolist() == [2, 3]
    swapped = shared_model.encode(text_examples(pairs.pairs, pairs.texts, pairs.labels))
    assert not np.allclose(embed(shared_model.model, data, chosen()), embed(shared_model.model, swapped, chosen()))
