"""Privacy accounting: the ε of Gaussian releases and of private training steps.

A release with L2 sensitivity Δ and noise N(0, (zΔ)² I) is (1/z)-GDP. Releases, each of which may depend on earlier
ones, compose to μ-GDP with μ² = Σ 1/z² (Dong, Roth and Su, arXiv 1905.02383, Corollary 3.3), and a μ-GDP release
is (ε, δ)-DP exactly for

    δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2)

(Balle and Wang, arXiv 1805.06530, Theorem 8). dp-accounting solves this for ε and for the noise.

Steps on random samples have no closed form. dp-accounting composes their privacy loss numerically, on a grid that
gives an upper bound (Doroshenko et al., PETS 2022, arXiv 2207.04380).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

MARGIN = 1e-6
"""Relative margin on the noise, so that rounding never brings the sum of releases over ε."""


def noise_multiplier(epsilon: float, delta: float, releases: int = 1) -> float:
    """Return z such that `releases` releases with noise z times the sensitivity are (ε, δ)-DP together."""
    from dp_accounting import get_sigma_gaussian  # imported late to keep --help fast

    return float(get_sigma_gaussian(epsilon, delta)) * math.sqrt(releases) * (1 + MARGIN)


def epsilon_of(multipliers: Iterable[float], delta: float) -> float:
    """Return the total ε at δ of Gaussian releases with noise of `multipliers` times their sensitivities.

    The result is 0 without any release, and infinity if a release has no noise.
    """
    from dp_accounting import get_epsilon_gaussian  # imported late to keep --help fast

    known = list(multipliers)
    if not known:
        return 0.0
    if min(known) <= 0:
        return math.inf
    return float(get_epsilon_gaussian(1 / math.sqrt(sum(z**-2 for z in known)), delta))


class Sampled(NamedTuple):
    """Training steps with Gaussian noise on Poisson samples.

    Attributes:
        multiplier: Standard deviation of the noise in sensitivities.
        rate: Probability of each example to be in a step.
        steps: Number of steps.
    """

    multiplier: float
    rate: float
    steps: int


GRID = 1e-3
"""Discretization interval of privacy losses; a ten times finer one changes the fourth decimal of ε."""
LEAST = 0.3
"""The smallest noise multiplier that calibration returns, for which ε is in the hundreds."""


def epsilon_with_steps(multipliers: Iterable[float], steps: Iterable[Sampled], delta: float) -> float:
    """Return the total ε at δ of Gaussian releases and training steps, for one example added or removed.

    The result is 0 without any release, and infinity if a release or step has no noise.
    """
    known, counts = list(multipliers), Counter[tuple[float, float]]()
    for part in steps:
        if part.multiplier <= 0:
            return math.inf
        counts[part.multiplier, part.rate] += part.steps
    if not counts or (known and min(known) <= 0):
        return epsilon_of(known, delta)
    gaussian = 1 / math.sqrt(sum(z**-2 for z in known)) if known else math.inf
    return _composed(gaussian, tuple(Sampled(z, rate, n) for (z, rate), n in sorted(counts.items())), delta)


@lru_cache(1024)
def _composed(gaussian: float, steps: tuple[Sampled, ...], delta: float) -> float:
    import dp_accounting as dp  # imported late to keep --help fast
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=GRID)
    if math.isfinite(gaussian):
        accountant.compose(dp.GaussianDpEvent(gaussian))
    for z, rate, count in steps:
        accountant.compose(dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(z)), count))
    return float(accountant.get_epsilon(delta))


@lru_cache(64)
def steps_multiplier(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Return z, within 0.1 %, such that `steps` steps on Poisson samples of that rate are (ε, δ)-DP together."""
    low, high = LEAST, LEAST
    while epsilon_with_steps([], [Sampled(high, rate, steps)], delta) > epsilon:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if epsilon_with_steps([], [Sampled(middle, rate, steps)], delta) > epsilon:
            low = middle
        else:
            high = middle
    return high
