"""Local training against what can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from local_training import CPU, EMPTY, EXAMPLES, chosen, train
from torch import nn

from trifed import make_config
from trifed.experiments.runner import prepare_run
from trifed.federation.training import device_placement
from trifed.federation.training.batches import learning_rate
from trifed.federation.training.device_placement import choose_precision, slow_precision
from trifed.federation.training.evaluation import evaluate


def without_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def trained_from_start(shared_model, data, setting, **kwargs):
    shared_model.load(shared_model.start)
    outcome = train(shared_model, data, setting, **kwargs)
    return outcome, shared_model.take()


def equal(first, second) -> bool:
    assert set(first) == set(second)
    return all(torch.equal(first[name], second[name]) for name in first)


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
        "trifed.federation.training.local_training.learning_rate",
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


# -- precision


def test_precision_is_what_was_asked_for():
    assert choose_precision(chosen(precision="fp32"), CPU) is torch.float32
    assert choose_precision(chosen(precision="bf16"), CPU) is torch.bfloat16
    assert choose_precision(chosen(precision="auto"), CPU) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_emulated_bfloat16_is_warned_of_and_auto_does_without(monkeypatch, precision, hardware):
    monkeypatch.setattr(device_placement, "_cpu_has_bf16", lambda: hardware)
    said = list(slow_precision(chosen(precision=precision)))
    assert [text.partition(":")[0] for text in said] == ["training.precision"] * (
        precision == "bf16" and not hardware
    )
    narrow = choose_precision(chosen(precision=precision), CPU) is torch.bfloat16
    assert narrow == (precision == "bf16" or (precision == "auto" and hardware))


def test_a_gpu_that_emulates_bfloat16_counts_as_one_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_precision(chosen(precision="auto"), torch.device("cuda")) is torch.float32
    monkeypatch.setattr(device_placement, "choose_device", lambda settings: torch.device("cuda"))
    assert ["GPU" in text for text in slow_precision(chosen(precision="bf16"))] == [True]


def test_the_start_of_a_run_warns_of_emulated_bfloat16(toy_values, monkeypatch):
    monkeypatch.setattr(device_placement, "_cpu_has_bf16", lambda: False)
    told = []
    prepare_run(make_config(toy_values(method="fedavg-lora", training={"precision": "bf16"})), told.append)
    assert [event["event"] for event in told if "training.precision" in event.get("text", "")] == ["trouble"]


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
