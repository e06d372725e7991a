"""Span attacks: laws on exact matrices, then a client whose texts come back, or do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from trifed import make_config
from trifed.attacks.plan import Plan
from trifed.attacks.reconstruction import TextReconstruction
from trifed.attacks.span import Span, position_wise_layers, spans, texts_from
from trifed.attacks.target import train_target

PLAN = Plan(rounds=2, batches=(1,), trials=3, matched=0)


def warm(toy_values, method, **changes):
    config = make_config(toy_values(method=method, privacy={"few_tokens": "allow"}, **changes))
    return train_target(config, 2, None)


@pytest.mark.parametrize("rank", [3, 9])
def test_distance_is_zero_in_the_span_and_one_across_it(rank):
    """Of ten dimensions; under and over half of them, where the complement is kept instead."""
    full, _ = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    inside, across = full[:, :rank], full[:, rank:]
    for basis, outside in ((inside, False), (across, True)):
        span = Span(basis, outside, rank, None)
        assert float(span.distance((inside @ torch.ones(rank).double())[None]).max()) < 1e-7
        np.testing.assert_allclose(span.distance(across.T).numpy(), 1)
        # Halfway: a vector with equal parts of both is at sin 45°.
        both = inside[:, 0] + across[:, 0]
        np.testing.assert_allclose(float(span.distance(both)), 0.5**0.5)


def test_a_core_needs_the_frame(toy_values):
    """∇C = Bᵀ Gᵀ X Aᵀ: its rows are combinations of A x, which only who has A can compare a token with."""
    target = warm(toy_values, "own-prior", adapter={"rank": 16})
    layers = position_wise_layers(
        target.shared_model, lambda ids: {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    )
    assert layers and all(".layer.0." in name for name in layers)
    row = int(target.client.train.lengths.argmin())
    target.shared_model.load(target.before)
    found = spans(target.shared_model, target.gradient(np.array([row])), layers)
    assert found and all(span.through is not None for span in found)
    assert {span.rank for span in found} == {len(set(enumerate(target.client.train.ids[row])))}


def trials(target, plan=PLAN):
    return TextReconstruction(target, plan, lambda text: None)


def rows_of(target, count=3):
    """The client's shortest texts."""
    return [np.array([row]) for row in np.argsort(target.client.train.lengths, kind="stable")[:count]]


def f1(rows, **wanted):
    [row] = [r for r in rows if all(getattr(r, name) == value for name, value in wanted.items())]
    return row.scores["f1"].mean


def test_the_whole_models_gradient_gives_a_text_back_word_by_word(toy_values):
    """The control, without the gradient of the embeddings; with it, the tokens are read off."""
    audit = trials(warm(toy_values, "fedavg-full"))
    rows = audit.run()
    [found] = [row for row in rows if row.attack == "span" and row.sees == "gradient"]
    assert found.scores["exact"].mean == 1
    assert found.attempts[0].original == found.attempts[0].found
    assert f1(rows, attack="embedding") > 0.95  # but for how often a token occurs
    assert f1(rows, attack="guesser") < 0.5


def test_public_frames_give_a_text_back_that_has_fewer_tokens_than_the_rank(toy_values):
    target = warm(toy_values, "own-prior", adapter={"rank": 16})
    audit = trials(target)
    audit.batches = {1: rows_of(target)}
    assert max(target.client.train.lengths[rows].sum() for rows in audit.batches[1]) < 16
    assert f1(audit.run(), attack="span", sees="gradient") == 1

    # A whole round by AdamW is no gradient: then there is no span, and the attacker is left with guessing.
    rows = audit.run()
    assert f1(rows, attack="span", sees="update") == pytest.approx(f1(rows, attack="guesser"), abs=0.15)


def test_private_factors_give_nothing_to_who_does_not_know_them(toy_values):
    target = warm(toy_values, "ce-lora", adapter={"rank": 16})
    audit = trials(target)
    audit.batches = {1: rows_of(target)}
    rows = audit.run()
    assert target.knowledge_levels() == ["base", "start", "factors"]
    assert f1(rows, attack="span", sees="gradient", knows="factors") == 1
    guess = f1(rows, attack="guesser")
    for knows in ("base", "start"):
        assert f1(rows, attack="span", sees="gradient", knows=knows) == guess


def test_texts_are_read_off_place_by_place_the_nearest_first():
    far = np.ones((5, 3), np.float32)
    far[2, 0], far[4, 0], far[1, 1], far[3, 2] = 2e-6, 1e-6, 1e-6, 0.5
    assert texts_from(far, 1, 3) == [[4, 1]]
    assert texts_from(far, 2, 3) == [[4, 1], [2]]
    assert texts_from(far, 2, 2) == []  # three tokens in two dimensions: then everything is near
    far[4, 2] = 3e-6  # a second place for a token that has one
    assert texts_from(far, 2, 3) == [[4, 1], [2]]
    assert texts_from(far, 2, 4) == [[4, 1, 4], [2]]
    assert texts_from(np.ones((5, 3), np.float32), 2, 3) == []


def test_of_pairs_both_texts_come_back(toy_values, toy_table, tmp_path):
    """A model that tells first and second texts apart adds something to each: both have to be tried."""
    rows = pd.read_csv(toy_table)
    rows["more"] = rows["text"].str.split().str[-2:].str.join(" ") + " word001"
    rows["text"] = rows["text"].str.split().str[:2].str.join(" ")
    rows.to_csv(tmp_path / "pairs.csv", index=False)
    data = {"source": str(tmp_path / "pairs.csv"), "text_pair": "more"}
    target = warm(toy_values, "own-prior", adapter={"rank": 16}, data=data)
    assert any(any(types) for types in target.client.train.more["token_type_ids"])
    audit = trials(target, replace(PLAN, matched=1, iterations=2))
    audit.batches = {1: rows_of(target)}
    rows = audit.run()
    assert f1(rows, attack="span", sees="gradient") == 1
    assert 0 <= f1(rows, attack="matching", sees="gradient") <= 1


def test_update_is_what_the_protocol_sends(toy_values):
    """Before minus after: of one step of a fresh AdamW ± the rate. The base's dropout moves signs, not sizes."""
    plain = {"steps": 1, "optimizer_state": "reset", "weight_decay": 0.0, "learning_rate": 0.01, "clip_norm": 0}
    target = warm(toy_values, "fedavg-lora", training=plain)
    update, gradient = (look(np.arange(4)) for look in (target.update, target.gradient))
    assert update.keys() == gradient.keys() == {name for name, _ in target.shared_model.layout}
    for name, values in update.items():
        clear = np.abs(gradient[name]) > 1e-5
        np.testing.assert_allclose(np.abs(values[clear]), 0.01, rtol=0.1)
        assert (np.sign(values[clear]) == np.sign(gradient[name][clear])).mean() > 0.6, name
