"""Nothing is computed twice: not a test row, not a feature, not a token."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from trifed import make_config, run
from trifed.data import text_examples
from trifed.experiments import runner
from trifed.federation.client_update import score
from trifed.federation.training.evaluation import evaluate
from trifed.tasks import text_classification
from trifed.tasks.tokens import EncodedTokens


@pytest.mark.parametrize(("method", "models"), [("local", 1), ("fedavg-lora", 2), ("own-prior", 3)])
@pytest.mark.parametrize("controls", [False, True])
def test_a_test_row_is_read_once_for_each_model_that_differs(
    method, models, controls, toy_values, tmp_path, monkeypatch
):
    """The base's features serve summaries, first scores and controls; at the end each stage is a model."""
    prepare, splits, read, batch = runner.prepare, {}, Counter(), EncodedTokens.batch

    def remember(*given):
        made = prepare(*given)
        splits.update({id(c.test): len(c.test) for c in made[2]})
        return made

    def count(self, rows, device):
        read[id(self)] += len(rows)
        return batch(self, rows, device)

    monkeypatch.setattr(runner, "prepare", remember)
    monkeypatch.setattr(EncodedTokens, "batch", count)
    run(make_config(toy_values(method=method, controls=controls, evaluate_every=3)), tmp_path / "run")
    for split, examples in splits.items():
        assert read[split] == examples * (1 + models)


def test_features_of_the_base_give_the_scores_of_an_adapter_that_adds_nothing(make_bench):
    shared_model = make_bench("own-prior")
    data = shared_model.encode(text_examples([f"refund {n}" for n in range(11)], None, np.arange(11) % 3))
    training = make_config({"data": {"source": "-"}, "training": {"device": "cpu", "precision": "fp32"}}).training
    changed = {**shared_model.start, "head.bias": shared_model.start["head.bias"] + 0.5}
    assert shared_model.adds_nothing(changed)
    found = score(shared_model, changed, data, training)
    expected = evaluate(shared_model.model, data, training)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6) and found.examples == 11
    assert np.array_equal(found.predictions, expected.predictions) and found.accuracy == expected.accuracy
    trained = {name: tensor + 0.1 for name, tensor in shared_model.start.items()}
    assert not shared_model.adds_nothing(trained)
    assert len(shared_model.features) == 1
    del data
    assert shared_model.features == {}


def test_texts_are_tokenised_once_and_long_ones_are_cut_as_the_tokenizer_cuts(make_bench, monkeypatch):
    shared_model = make_bench("local")
    tokenizer, pairs = shared_model.base.processor, [" ".join(["refund"] * n) for n in (2, 40, 5, 30)]
    examples = text_examples([" ".join(["parcel"] * n) for n in (3, 4, 50, 20)], pairs, np.zeros(4, np.int64))
    settings = shared_model.settings.model_copy(update={"max_length": 16})
    found = text_classification.encode(shared_model.base, examples, settings)
    expected = tokenizer(examples.texts, pairs, truncation=True, max_length=16)
    assert found.ids == expected["input_ids"] and found.cut == 3
    assert all(found.more[name] == expected[name] for name in found.more)
    asked = []
    call = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda s, t, *a, **k: asked.append(len(t)) or call(s, t, *a, **k)
    )
    text_classification.encode(shared_model.base, examples, settings)
    assert asked == [4, 3]
