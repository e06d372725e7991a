"""Privacy accounting: the ε of Gaussian releases and of private training steps.

A release with L2 sensitivity Δ and noise N(0, (zΔ)² I) is (1/z)-GDP. Releases, each of which may depend on earlier
ones, compose to μ-GDP with μ² = Σ 1/z² (Dong, Roth and Su, arXiv 1905.02383, Corollary 3.3), and a μ-GDP release
is (ε, δ)-DP exactly for

    δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2)

(Balle and Wang, arXiv 1805.06530, Theorem 8). dp-accounting solves this for ε and for the noise.

Sums of rounded changes with discrete Gaussian noise are 1/(2z²)-concentrated differentially private (Kairouz, Liu
and Steinke, arXiv 2102.06387), as Gaussian releases are. They add up, with these, to ρ = Σ 1/(2z²), and ε follows
from the Rényi divergences α·ρ of all orders α (Canonne, Kamath and Steinke, arXiv 2004.00010, Proposition 12).

Steps on random samples have no closed form. dp-accounting composes their privacy loss numerically, on a grid that
gives an upper bound (Doroshenko et al., PETS 2022, arXiv 2207.04380).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from dp_accounting import PrivacyAccountant

MARGIN = 1e-6
"""Relative margin on the noise, so that rounding never brings the sum of releases over ε."""


def noise_multiplier(epsilon: float, delta: float, releases: int = 1, *, in_sums: bool = False) -> float:
    """Return z such that `releases` releases with noise z times the sensitivity are (ε, δ)-DP together.

    Args:
        epsilon: ε.
        delta: δ.
        releases: Number of releases.
        in_sums: Whether they are sums of rounded changes with discrete noise, see `epsilon_of_sums`.
    """
    from dp_accounting import get_sigma_gaussian  # imported late to keep --help fast

    one = _sum_multiplier(epsilon, delta) if in_sums else float(get_sigma_gaussian(epsilon, delta))
    return one * math.sqrt(releases) * (1 + MARGIN)


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


def epsilon_of_sums(multipliers: Iterable[float], steps: Iterable[Sampled], delta: float) -> float:
    """Return the total ε at δ of releases of which some are sealed sums with discrete noise.

    Their ε is up to nine percent above that of Gaussian releases with the same noise, because less is known of the
    discrete distribution. The result is 0 without any release, and infinity if a release or step has no noise.
    """
    known, parts = list(multipliers), list(steps)
    if min([*known, *(part.multiplier for part in parts)], default=1.0) <= 0:
        return math.inf
    if not known and not parts:
        return 0.0
    gaussian = 1 / math.sqrt(sum(z**-2 for z in known)) if known else math.inf
    return _renyi(gaussian, tuple(parts), delta)


def _epsilon(accountant: PrivacyAccountant, gaussian: float, steps: tuple[Sampled, ...], delta: float) -> float:
    """Return the ε of one Gaussian release and of noised training steps, composed by `accountant`."""
    import dp_accounting as dp  # imported late to keep --help fast

    if math.isfinite(gaussian):
        accountant.compose(dp.GaussianDpEvent(gaussian))
    for z, rate, count in steps:
        accountant.compose(dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(z)), count))
    return float(accountant.get_epsilon(delta))


@lru_cache(1024)
def _renyi(gaussian: float, steps: tuple[Sampled, ...], delta: float) -> float:
    from dp_accounting.rdp import RdpAccountant  # imported late to keep --help fast

    accountant = RdpAccountant(None if steps else _orders())  # few orders for steps, each of which takes long
    return _epsilon(accountant, gaussian, steps, delta)


@lru_cache(1)
def _orders() -> list[float]:
    """Return orders of Rényi divergences, close enough that ε is exact to 1e-5 of its size."""
    return [float(order) for order in 1 + 10 ** np.linspace(-3, 5, 1000)]


@lru_cache(64)
def _sum_multiplier(epsilon: float, delta: float) -> float:
    """Return z such that one sealed sum with noise z is (ε, δ)-DP."""
    from dp_accounting import get_sigma_gaussian  # imported late to keep --help fast

    low = float(get_sigma_gaussian(epsilon, delta))
    high = 1.25 * low
    while epsilon_of_sums([high], [], delta) > epsilon:
        low, high = high, 1.25 * high
    while high - low > MARGIN * high:
        middle = (low + high) / 2
        if epsilon_of_sums([middle], [], delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


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
    from dp_accounting.pld import PLDAccountant  # imported late to keep --help fast

    accountant = PLDAccountant(value_discretization_interval=GRID)
    return _epsilon(accountant, gaussian, steps, delta)


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
