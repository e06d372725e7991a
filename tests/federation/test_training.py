"""Local training and evaluation against what can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trifed.config.settings import TrainingSettings
from trifed.data import text_examples
from trifed.federation.batches import RoundRandom, epoch_batches, learning_rate, round_batches, steps_per_round
from trifed.federation.device_placement import choose_precision
from trifed.federation.evaluation import embed, evaluate, length_order
from trifed.federation.training import LocalTraining, train_locally
from trifed.tasks.text_classification import encode

CPU = torch.device("cpu")
WORDS = ["invoice", "parcel", "password", "refund", "courier", "account"]
# Row i has i + 1 words: all lengths differ, so that a batch of all rows has one order only.
TEXTS = [" ".join([WORDS[i % 6], *(f"word{(7 * i + k) % 170:03d}" for k in range(i))]) for i in range(12)]
EXAMPLES = text_examples(TEXTS, None, np.arange(12) % 3)
EMPTY = text_examples([], None, np.zeros(0, np.int64))


def chosen(**values) -> TrainingSettings:
    base = {"batch_size": 4, "eval_batch_size": 4, "learning_rate": 1e-2, "precision": "fp32", "device": "cpu"}
    return TrainingSettings(**{**base, **values})


def without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def train(shared_model, data, setting, *, rng=0, before=0, in_all=100, moments=None):
    job = LocalTraining(shared_model.parameters, data, RoundRandom.of(rng, 1, 0), before, in_all, moments or {})
    return train_locally(shared_model.model, [job], setting)[0]


def trained_from_start(shared_model, data, setting, **kwargs):
    shared_model.load(shared_model.start)
    outcome = train(shared_model, data, setting, **kwargs)
    return outcome, shared_model.take()


def equal(first, second) -> bool:
    assert set(first) == set(second)
    return all(torch.equal(first[name], second[name]) for name in first)


# -- batches and schedule


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 99))
def test_an_epoch_is_a_permutation_of_the_rows(lengths, batch_size, seed):
    batches = epoch_batches(np.array(lengths), batch_size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert len(batches) == steps_per_round(len(lengths), chosen(batch_size=batch_size))


def test_batches_come_in_another_order_for_another_seed_only():
    lengths = np.arange(1, 65)
    first, again, other = (
        list(round_batches(lengths, chosen(), RoundRandom.of(seed, 1, 0))) for seed in (0, 0, 1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert sorted(np.concatenate(first).tolist()) == list(range(64))
    tops = [lengths[batch].max() for batch in first]
    assert tops != sorted(tops)  # short batches do not always come first


def test_clients_take_batches_of_similar_length_at_the_same_step():
    """Of 40 clients with lengths from one distribution, a step is seldom much wider than a client's own batch."""
    rng, wide, own = np.random.default_rng(3), 0, 0
    lengths = [rng.integers(5, 60, rng.integers(150, 250)) for _ in range(40)]
    rounds = [
        list(round_batches(lengths[c], chosen(steps=9, batch_size=16), RoundRandom.of(0, 1, c))) for c in range(40)
    ]
    for step in zip(*rounds, strict=True):
        widths = [lengths[client][rows].max() for client, rows in enumerate(step)]
        wide, own = wide + 40 * max(widths), own + sum(widths)
    assert wide < 1.3 * own


def test_neighbours_in_length_pad_less_than_a_random_order():
    lengths = np.random.default_rng(0).integers(4, 120, 500)
    batches = epoch_batches(lengths, 8, np.random.default_rng(1))
    order = np.random.default_rng(1).permutation(500)
    random_order = [order[i : i + 8] for i in range(0, 500, 8)]

    def padded(rows):
        return sum(len(batch) * lengths[batch].max() for batch in rows)

    assert padded(batches) < 0.75 * padded(random_order)


@pytest.mark.parametrize(
    ("examples", "values", "steps"),
    [
        (0, {}, 0),
        (1, {}, 1),
        (8, {}, 2),
        (9, {"epochs": 2}, 6),
        (9, {"steps": 5}, 5),
        (0, {"steps": 5}, 0),
    ],
)
def test_steps_a_round(examples, values, steps):
    assert steps_per_round(examples, chosen(**values)) == steps


@pytest.mark.parametrize(
    ("values", "total", "expected"),
    [
        ({}, 4, [1, 1, 1, 1]),
        ({"schedule": "linear"}, 4, [1, 3 / 4, 2 / 4, 1 / 4]),  # (total - step) / total: 0 is next
        ({"warmup": 0.5}, 4, [1 / 2, 1, 1, 1]),
        # ceil(0.25 * 8) = 2 rising steps, then (8 - step) / 6.
        ({"schedule": "linear", "warmup": 0.25}, 8, [1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"warmup": 0.1}, 5, [1, 1, 1, 1, 1]),
    ],
)
def test_the_learning_rate_in_closed_form(values, total, expected):
    setting = chosen(learning_rate=0.02, **values)
    rates = [learning_rate(step, total, setting) for step in range(total)]
    np.testing.assert_allclose(rates, 0.02 * np.array(expected), rtol=1e-12)


# -- training


@pytest.fixture
def shared_model(make_bench):
    return make_bench("local")


@pytest.fixture
def data(shared_model):
    return shared_model.encode(EXAMPLES)


def test_training_depends_on_its_generator_alone(make_bench):
    shared_model = make_bench("ce-lora", adapter={"dropout": 0.3})
    data = shared_model.encode(EXAMPLES)
    torch.manual_seed(1)
    first, tensors = trained_from_start(shared_model, data, chosen())
    torch.manual_seed(2)
    torch.rand(5)
    again, same = trained_from_start(shared_model, data, chosen())
    other, different = trained_from_start(shared_model, data, chosen(), rng=1)
    assert first.loss == again.loss and equal(tensors, same) and equal(first.moments, again.moments)
    assert first.loss != other.loss and not equal(tensors, different)


def test_training_does_not_move_torchs_generator(shared_model, data):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trained_from_start(shared_model, data, chosen())
    evaluate(shared_model.model, data, chosen())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_of_one_step_is_the_loss_before_it_and_dropout_is_active(shared_model, data):
    one = chosen(batch_size=12)
    shared_model.load(shared_model.start)
    plain = evaluate(shared_model.model, data, one).loss
    dropped, _ = trained_from_start(shared_model, data, one)
    assert dropped.steps == 1 and abs(dropped.loss - plain) > 1e-4
    without_dropout(shared_model.model)
    exact, _ = trained_from_start(shared_model, data, one)
    assert exact.loss == pytest.approx(plain, rel=1e-5)


def test_the_reported_loss_is_the_mean_over_the_steps(shared_model, data):
    # A vanishing learning rate: every step sees the same model, and 12 rows make 3 equal batches of 4.
    without_dropout(shared_model.model)
    still = chosen(learning_rate=1e-12, weight_decay=0)
    outcome, _ = trained_from_start(shared_model, data, still)
    assert outcome.steps == 3
    assert outcome.loss == pytest.approx(evaluate(shared_model.model, data, still).loss, rel=1e-5)


def test_training_lowers_the_loss(shared_model, data):
    shared_model.load(shared_model.start)
    before = evaluate(shared_model.model, data, chosen()).loss
    train(shared_model, data, chosen(epochs=15))
    assert evaluate(shared_model.model, data, chosen()).loss < 0.7 * before


def test_each_round_has_a_schedule_of_its_own(shared_model, data, monkeypatch):
    # 12 rows in batches of 4 are 3 steps: the rate is r, 2/3 r, 1/3 r, in whatever round, and however many follow.
    asked = []
    monkeypatch.setattr(
        "trifed.federation.training.learning_rate",
        lambda *args: asked.append(learning_rate(*args)) or asked[-1],
    )
    setting = chosen(schedule="linear-each-round", learning_rate=0.03)
    for before, in_all in ((0, 3), (3, 6), (30, 300)):
        train(shared_model, data, setting, before=before, in_all=in_all)
    np.testing.assert_allclose(asked, [0.03, 0.02, 0.01] * 3, rtol=1e-12)


def test_a_first_round_by_itself_is_a_run_of_one_round_with_a_falling_rate(shared_model, data):
    each = trained_from_start(shared_model, data, chosen(schedule="linear-each-round"), in_all=300)[1]
    of_the_run = trained_from_start(shared_model, data, chosen(schedule="linear"), in_all=3)[1]
    assert equal(each, of_the_run)
    assert not equal(each, trained_from_start(shared_model, data, chosen(schedule="linear"), in_all=300)[1])


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_two_rounds_with_kept_moments_equal_one_stretch_of_twice_the_length(shared_model, data, schedule):
    # Full batches of rows whose lengths all differ: every step sees the same batch in the same order, and
    # without dropout the generator decides nothing. AdamW's state and the place in the schedule remain.
    without_dropout(shared_model.model)
    setting = chosen(batch_size=12, schedule=schedule, warmup=0.2)
    whole, expected = trained_from_start(shared_model, data, setting.model_copy(update={"steps": 8}), in_all=8)
    half = setting.model_copy(update={"steps": 4})
    first, _ = trained_from_start(shared_model, data, half, in_all=8)
    second = train(shared_model, data, half, rng=7, before=4, in_all=8, moments=first.moments)
    assert equal(shared_model.take(), expected) and equal(second.moments, whole.moments)
    assert (first.loss + second.loss) / 2 == pytest.approx(whole.loss, rel=1e-6)
    assert {float(t) for name, t in second.moments.items() if name.startswith("step/")} == {8.0}

    trained_from_start(shared_model, data, half, in_all=8)
    train(shared_model, data, half, rng=7, before=4, in_all=8, moments=None)
    assert not equal(shared_model.take(), expected)  # reset: another result

    trained_from_start(shared_model, data, half, in_all=8)
    train(shared_model, data, half, rng=7, before=0, in_all=8, moments=first.moments)
    assert not equal(shared_model.take(), expected)  # the wrong place in the schedule: another result


def test_moments_handed_in_are_not_changed(shared_model, data):
    first, _ = trained_from_start(shared_model, data, chosen())
    kept = {name: tensor.clone() for name, tensor in first.moments.items()}
    train(shared_model, data, chosen(), moments=first.moments)
    assert equal(first.moments, kept)


def first_gradient_norm(moments) -> float:
    """AdamW's first moment after one step is 0.1 times the gradient it was given."""
    return math.sqrt(sum(float((t / 0.1).square().sum()) for n, t in moments.items() if n.startswith("exp_avg/")))


def test_the_gradient_is_clipped_to_its_norm(shared_model, data):
    without_dropout(shared_model.model)
    shared_model.load(shared_model.start)
    shared_model.model.loss(data.batch(np.arange(12), CPU)).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in shared_model.parameters.values()))
    shared_model.model.zero_grad(set_to_none=True)
    one = {"batch_size": 12}
    free, _ = trained_from_start(shared_model, data, chosen(clip_norm=0, **one))
    assert first_gradient_norm(free.moments) == pytest.approx(norm, rel=1e-3)
    clipped, _ = trained_from_start(shared_model, data, chosen(clip_norm=norm / 10, **one))
    assert first_gradient_norm(clipped.moments) == pytest.approx(norm / 10, rel=1e-3)
    loose, _ = trained_from_start(shared_model, data, chosen(clip_norm=norm * 10, **one))
    assert first_gradient_norm(loose.moments) == pytest.approx(norm, rel=1e-3)


def test_without_examples_nothing_is_trained(shared_model):
    outcome, tensors = trained_from_start(shared_model, shared_model.encode(EMPTY), chosen(steps=5))
    assert outcome.steps == 0 and math.isnan(outcome.loss) and outcome.moments == {}
    assert equal(tensors, shared_model.start)


# -- evaluation


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


# -- precision


def test_precision_is_what_was_asked_for():
    assert choose_precision(chosen(precision="fp32"), CPU) is torch.float32
    assert choose_precision(chosen(precision="bf16"), CPU) is torch.bfloat16
    assert choose_precision(chosen(precision="auto"), CPU) in (torch.float32, torch.bfloat16)


def test_auto_is_float32_with_a_build_of_torch_without_onednn(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert choose_precision(chosen(precision="auto"), CPU) is torch.float32


def test_bfloat16_gives_nearly_the_same_losses_and_float32_tensors(shared_model, data):
    without_dropout(shared_model.model)
    full, exact = trained_from_start(shared_model, data, chosen())
    scores = evaluate(shared_model.model, data, chosen())
    half, near = trained_from_start(shared_model, data, chosen(precision="bf16"))
    rough = evaluate(shared_model.model, data, chosen(precision="bf16"))
    assert half.loss == pytest.approx(full.loss, rel=0.02) and half.loss != full.loss
    assert rough.loss == pytest.approx(scores.loss, rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in near.values()) and set(near) == set(exact)
