"""A canary audit: what an attacker measures of ε, with and without one record or one client's updates.

The attacker knows all but whether the canary was there, and has the best score there is for it. On one half of
many releases a threshold is chosen; on the other, Clopper–Pearson intervals bound false and true positives. With
95 % confidence ε ≥ log((TPR_low − δ) / FPR_high) (Jagielski, Ullman, Oprea, NeurIPS 2020, arXiv 2006.07709). The
claim has to lie above; with a quarter of the noise the same attack has to find more than that, else it is blind.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from trifed.config.settings import PrivacySettings
from trifed.federation.dp_mechanism import DpContext, DpMechanism
from trifed.privacy import noise_multiplier, noised_summary, seeded_noise

DELTA = 1e-5
EPSILON = 1.0


def clopper_pearson(hits, trials, confidence=0.975):
    low = beta.ppf(1 - confidence, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(confidence, hits + 1, trials - hits) if hits < trials else 1.0
    return low, high


def lower_bound(without, with_canary):
    """ε that the scores show, with 95 % confidence; both (n,)."""
    half = len(without) // 2
    tried = np.quantile(np.concatenate([without[:half], with_canary[:half]]), np.linspace(0.02, 0.98, 49))

    def bound(part, threshold):
        misses, hits = (int((scores[part] > threshold).sum()) for scores in (without, with_canary))
        size = len(without[part])
        low, high = clopper_pearson(hits, size)[0], clopper_pearson(misses, size)[1]
        return math.log(max(low - DELTA, 1e-12) / high)

    best = max(tried, key=lambda threshold: bound(slice(half), threshold))
    return bound(slice(half, None), best)


def test_the_bound_comes_near_what_is_there():
    # Randomised response with p = e/(1 + e) is 1-DP and no better: the bound comes near from below.
    rng = np.random.default_rng(1)
    p = math.e / (1 + math.e)
    without, with_canary = (rng.random(20_000) < share for share in (1 - p, p))
    assert 0.85 < lower_bound(without + 0.0, with_canary + 0.0) < 1.0


def summary_scores(z, canary, rng, n=4000):
    """Scores of n summaries of 40 examples, and the canary, which lies on an axis, where the sensitivity is."""
    base = np.random.default_rng(9).standard_normal((40, 3))  # known to the attacker
    x = np.concatenate([base, np.eye(3)[:1]]) if canary else base
    y = np.zeros(len(x), np.int64)
    told = (noised_summary(x, y, 1, z, seeded_noise(rng)) for _ in range(n))
    return np.array([s.class_counts[0] * (1 + s.means[0, 0]) if len(s.means) else -np.inf for s in told])


@pytest.mark.parametrize(("share", "holds"), [(1.0, True), (0.25, False)])
def test_one_record_in_a_summary(share, holds):
    z = share * noise_multiplier(EPSILON, DELTA)
    without, with_canary = (
        summary_scores(z, canary, np.random.default_rng(1 + canary)) for canary in (False, True)
    )
    found = lower_bound(without, with_canary)
    assert (found <= EPSILON) == holds


def update_scores(folder, change, rounds, z_share, rng, n=2000):
    """Scores of n runs of all rounds: what is sent, along the direction of the canary's change."""
    settings = PrivacySettings.model_validate({"update": {"epsilon": EPSILON, "clip": 2.0}})
    guard = DpMechanism(settings, DpContext("canary", folder, rounds, None, lambda *_: seeded_noise(rng)))
    guard.update_noise *= z_share
    [step] = guard.upload_steps()
    start = np.zeros_like(change)
    return np.array([sum(step.apply(change, start, r, {})[0] for r in range(rounds)) for _ in range(n)])


@pytest.mark.parametrize(("share", "holds"), [(1.0, True), (0.25, False)])
def test_one_clients_updates(share, holds, tmp_path):
    rng = np.random.default_rng(2)
    longest = np.array([300.0, 0, 0, 0], np.float32)  # far longer than the clip
    found = lower_bound(
        update_scores(tmp_path, 0 * longest, 5, share, rng), update_scores(tmp_path, longest, 5, share, rng)
    )
    assert (found <= EPSILON) == holds
    assert found > 0  # the attack sees something either way
