"""How loud noise is: the formula against drawn noise, and what a person is told before a run."""

from __future__ import annotations

import numpy as np
import pytest

from trifed import make_config, run
from trifed.federation.privacy_report import noise_to_signal, of_steps, of_updates
from trifed.privacy import noise_multiplier


def test_it_is_the_length_of_the_noise_on_a_mean():
    rng, clients, values, z = np.random.default_rng(0), 5, 4000, 3.0
    noise = rng.normal(0, z, (20, clients, values)).mean(1)
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1).mean(), of_updates(z, values, clients), rtol=0.01)
    step = rng.normal(0, z, (20, values))  # on a sum of 8 gradients of length 1, which is 8 at most
    np.testing.assert_allclose(np.linalg.norm(step, axis=1).mean() / 8, of_steps(z, values, 8), rtol=0.01)


def test_four_times_the_clients_halve_it_and_a_quarter_of_the_numbers_does_too():
    assert of_updates(2.0, 100, 4) == 10.0
    assert of_updates(2.0, 100, 16) == of_updates(2.0, 25, 4) == 5.0


def said(toy_values, privacy, sizes=(40, 40, 40, 40), sent=10_000, **changes):
    return list(noise_to_signal(make_config(toy_values(privacy=privacy, **changes)), sent, 10_000, list(sizes)))


def test_without_noise_on_what_is_learned_nothing_is_said(toy_values):
    assert said(toy_values, {}) == []
    assert said(toy_values, {"summary": {"epsilon": 4.0}}) == []


@pytest.mark.parametrize(("participation", "clients"), [(1.0, 4), (0.5, 2)])
def test_only_who_takes_part_is_averaged_over(toy_values, participation, clients):
    privacy = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0}}
    (text,) = said(toy_values, privacy, participation=participation)
    z = noise_multiplier(8.0, 1e-5, make_config(toy_values()).rounds)
    assert f"a mean of {clients} clients is about {z * (10_000 / clients) ** 0.5:.0f} times" in text
    assert "sends nothing" in text


def test_quiet_noise_needs_no_advice(toy_values):
    privacy = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0}}
    (text,) = said(toy_values, privacy, sizes=[40] * 1000, sent=10)
    assert "0.2 times" in text or "0.1 times" in text
    assert "quieter" not in text


def test_a_run_says_it_before_it_starts(toy_values, tmp_path):
    heard = []
    privacy = {"summary": {"epsilon": 4.0}, "training": {"epsilon": 8.0, "rate": 0.25}}
    values = toy_values(privacy=privacy)
    values["training"] = {**values.get("training", {}), "steps": 2}
    run(make_config(values), tmp_path / "run", heard.append)
    texts = [event.get("text", "") for event in heard]
    place = next(n for n, text in enumerate(texts) if text.startswith("privacy.training: the noise on a step"))
    assert place < [event["event"] for event in heard].index("started")
