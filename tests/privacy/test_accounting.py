"""What Gaussian noise is worth, against the closed form, against numerical composition, and against a table."""

from __future__ import annotations

import math

import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from scipy.stats import norm

from trifed.config.settings import PrivacySettings
from trifed.privacy import epsilon_of, noise_multiplier, promised
from trifed.privacy.ledger import Entry, spent

DELTA = 1e-5


def delta_of(epsilon, mu):
    """δ of a μ-GDP release at ε (Balle and Wang 2018, Theorem 8): the likelihood ratio is normal, N(±μ²/2, μ²)."""
    return norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)


@pytest.mark.parametrize("rounds", [1, 7, 50])
@pytest.mark.parametrize("z", [0.7, 2.0, 9.0])
def test_rounds_compose_as_the_closed_form_says(rounds, z):
    # T releases of N(0, z²) and sensitivity 1 are one of the T-vector: distance √T over z.
    assert delta_of(epsilon_of([z] * rounds, DELTA), math.sqrt(rounds) / z) == pytest.approx(DELTA, rel=1e-6)


def test_releases_of_different_noise_compose_by_their_squares():
    # 1/3² + 1/4² = (5/12)²: as one release of noise 12/5.
    assert epsilon_of([3.0, 4.0], DELTA) == pytest.approx(epsilon_of([2.4], DELTA), rel=1e-12)


@pytest.mark.parametrize(("z", "epsilon"), [(1, 54), (2, 20.7), (4, 8.6), (8, 3.8)])
def test_the_table_of_fifty_rounds(z, epsilon):
    assert epsilon_of([z] * 50, DELTA) == pytest.approx(epsilon, rel=0.01)
    # Anywhere in the ball in place of nothing: twice the sensitivity, as half the noise.
    assert epsilon_of([z / 2] * 50, DELTA) == pytest.approx(epsilon_of([z] * 200, DELTA))


def test_numerical_composition_agrees():
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(4.0), 50))
    # Its grid errs on the safe side.
    exact = epsilon_of([4.0] * 50, DELTA)
    assert exact <= accountant.get_epsilon(DELTA) <= 1.01 * exact


@pytest.mark.parametrize("rounds", [1, 3, 20, 999])
@pytest.mark.parametrize("epsilon", [0.02, 1.0, 8.0, 300.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 0.05])
def test_calibrated_noise_meets_its_epsilon_and_wastes_nothing(epsilon, delta, rounds):
    found = epsilon_of([noise_multiplier(epsilon, delta, rounds)] * rounds, delta)
    assert 0.9999 * epsilon < found <= epsilon


def test_nothing_released_costs_nothing_and_no_noise_costs_all():
    assert epsilon_of([], DELTA) == 0
    assert epsilon_of([5.0, 0.0], DELTA) == math.inf


BOTH = PrivacySettings.model_validate({"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0}})


def entries(*releases):
    return [Entry(what=what, round=number, multiplier=z, digest=f"{number}") for what, number, z in releases]


def test_each_relation_counts_what_it_covers():
    alone, both, client = spent(entries(("summary", 0, 3.0), ("update", 1, 8.0), ("update", 2, 8.0)), BOTH)
    assert alone.epsilon == epsilon_of([3.0], DELTA)
    assert client.epsilon == epsilon_of([8.0, 8.0], DELTA)
    # 1/9 + 2/16 = 17/72
    assert both.epsilon == pytest.approx(epsilon_of([math.sqrt(72 / 17)], DELTA))
    assert (alone.releases, both.releases, client.releases) == (1, 3, 2)
    assert "example" in both.relation and "updates" in client.relation


def test_what_went_out_without_noise_is_not_passed_over():
    alone, both, client = spent(entries(("summary", 0, 3.0), ("update", 1, None)), BOTH)
    assert math.isfinite(alone.epsilon) and both.epsilon == client.epsilon == math.inf


def test_a_promise_is_what_all_rounds_cost():
    alone, both, client = promised(BOTH, 20, None, summarises=True, uploads=True)
    assert alone.epsilon == pytest.approx(4.0, rel=1e-4) and client.epsilon == pytest.approx(8.0, rel=1e-4)
    # Half the noise in each round: more than both budgets together.
    assert both.epsilon > 12
    only = PrivacySettings.model_validate({"summary": {"epsilon": 4.0}})
    assert [line.epsilon for line in promised(only, 20, None, summarises=True, uploads=True)][1:] == [math.inf] * 2
    assert promised(only, 20, None, summarises=True, uploads=False)[1].epsilon == pytest.approx(4.0, rel=1e-4)
