"""`personalization.interpolate = "auto"`: each client chooses its share of the received model on its own data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trifed import make_config, run
from trifed.common.errors import ConfigError
from trifed.config.run import to_toml
from trifed.data import text_examples
from trifed.federation.personalization import SHARES, TOLERANCE, largest_share
from trifed.federation.training import evaluation
from trifed.federation.training.evaluation import evaluate, example_losses
from trifed.methods.personalization import WITHOUT_VALIDATION

TEXTS = [f"{word} word{number:03d}" for word in ("invoice", "parcel", "password") for number in range(4)]


def test_the_largest_share_that_is_no_worse_up_to_half_a_standard_error():
    # Losses of four examples by share, from 1 to 0. The least mean is that of share 0.5, 1.0.
    best = np.array([1.0, 1.0, 1.0, 1.0])
    # Excess of share 0.75: mean 0.2, standard deviation 0.8; half a standard error is 0.5 · 0.8 / 2 = 0.2.
    noisy = best + np.array([1.4, -0.2, -0.2, -0.2])
    assert noisy.mean() - 1 == pytest.approx(0.2) and (noisy - best).std(ddof=1) == pytest.approx(0.8)
    just_within, just_out = best + 0.99 * (noisy - best) - 0.01, noisy + 0.01
    worse = best + np.array([0.3, 0.31, 0.29, 0.3])  # surely worse
    for second, expected in ((just_within, 0.75), (just_out, 0.5)):
        assert largest_share(np.stack([worse, second, best, worse, worse]), 0.1) == expected
    assert largest_share(np.stack([best] * 5), 0.1) == 1.0
    assert largest_share(np.stack([worse, worse, worse, worse, best]), 0.1) == 0.0
    assert TOLERANCE == 0.5 and SHARES == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_losses_that_are_not_finite_and_few_examples():
    losses = np.ones((5, 3))
    losses[0, 1], losses[1, 0] = np.nan, np.inf
    assert largest_share(losses, 0.1) == 0.5
    assert largest_share(np.full((5, 3), np.nan), 0.1) == 0.1
    assert largest_share(np.ones((5, 1)), 0.1) == largest_share(np.ones((5, 0)), 0.1) == 0.1


def test_losses_of_single_examples_do_not_depend_on_how_they_are_found(make_bench, toy_values, monkeypatch):
    """By the probabilities of the labels, or, as for tasks without one label, example by example."""
    shared_model = make_bench("local")
    settings = make_config(toy_values(method="local")).training
    data = shared_model.encode(text_examples(TEXTS, None, np.arange(12) % 3))
    by_label, scores = (
        example_losses(shared_model.model, data, settings),
        evaluate(shared_model.model, data, settings),
    )
    assert by_label.shape == (12,) and by_label.mean() == pytest.approx(scores.loss, rel=1e-5)
    without = scores.predictions[:0]
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *args: evaluation.Scores(0.0, 0.0, 12, scores.right, without)
    )
    np.testing.assert_allclose(example_losses(shared_model.model, data, settings), by_label, rtol=1e-4, atol=1e-6)


def tensors_of(done):
    return {
        folder.name: {
            name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()
        }
        for folder in sorted((done.path / "clients").iterdir())
    }


@pytest.mark.parametrize(("valid", "method"), [(0.3, "ce-lora"), (0.3, "fedavg-lora"), (0.0, "fedavg-lora")])
def test_each_client_uses_one_of_the_shares_of_what_it_received(valid, method, toy_values, tmp_path):
    """The kept model is trained + share · (received - trained), with a share of the client's own."""
    kept, done_by = {}, {}
    for share in ("auto", 0.0, 1.0):
        much = {"epochs": 4, "learning_rate": 0.05}  # so that trained and received models are far apart
        values = toy_values(method=method, evaluate_every=3, data={"valid_fraction": valid}, training=much)
        config = make_config({**values, "personalization": {"interpolate": share}})
        done = done_by[share] = run(config, tmp_path / str(share))
        kept[share] = tensors_of(done)
    shares = {}
    for client, chosen in kept["auto"].items():
        trained, received = kept[0.0][client], kept[1.0][client]
        moved = next(name for name in chosen if not torch.equal(trained[name], received[name]))
        change = received[moved] - trained[moved]
        shares[client] = float(((chosen[moved] - trained[moved]) * change).sum() / change.square().sum())
        for name, tensor in chosen.items():
            expected = torch.lerp(trained[name], received[name], shares[client])
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)
    told = {client["name"]: client.get("received_share") for client in done_by["auto"].summary["clients"]}
    assert told == pytest.approx(shares, abs=1e-3)
    assert not any("received_share" in client for client in done_by[1.0].summary["clients"])
    assert all(min(abs(share - tried) for tried in SHARES) < 1e-3 for share in shares.values())
    if valid:
        assert any(abs(share - WITHOUT_VALIDATION) > 1e-3 for share in shares.values())
    else:
        assert all(share == pytest.approx(WITHOUT_VALIDATION, abs=1e-3) for share in shares.values())


def test_the_setting_is_a_number_or_auto_for_any_method_that_receives():
    values = {"data": {"source": "t.csv"}, "method": "ce-lora"}
    config = make_config({**values, "personalization": {"interpolate": "auto"}})
    method = config.composed_method()
    assert (method.evaluated_model, method.interpolation, method.chooses_interpolation) == (
        "interpolated",
        0.75,
        True,
    )
    assert 'interpolate = "auto"' in to_toml(config)
    by_number = make_config({**values, "personalization": {"interpolate": 0.75}})
    assert not by_number.composed_method().chooses_interpolation
    ids = {one.run_id() for one in (config, by_number, make_config(values))}
    assert len(ids) == 3
    alone = config.with_method("alone").composed_method()
    assert alone.evaluated_model == "trained" and not alone.chooses_interpolation
    for wrong in ("best", 1.5, -0.1):
        with pytest.raises(ConfigError, match=r"personalization\.interpolate"):
            make_config({**values, "personalization": {"interpolate": wrong}})
