"""What Gaussian noise is worth, in closed form.

A release with L2 sensitivity Δ and noise N(0, (zΔ)² I) is (1/z)-GDP. Releases, each chosen in the light of those
before, compose to μ-GDP with μ² = Σ 1/z² (Dong, Roth and Su, arXiv 1905.02383, Corollary 3.3), and a μ-GDP release
is (ε, δ)-DP exactly for

    δ(ε) = Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2)

(Balle and Wang, arXiv 1805.06530, Theorem 8). dp-accounting solves this for ε and for the noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

MARGIN = 1e-6
"""Share by which noise is more than it has to be, so that rounding never brings the sum of releases over ε."""


def noise_multiplier(epsilon: float, delta: float, releases: int = 1) -> float:
    """z, such that `releases` Gaussian releases with noise z times the sensitivity are (ε, δ)-DP together."""
    from dp_accounting import get_sigma_gaussian  # late, for a quick --help

    return float(get_sigma_gaussian(epsilon, delta)) * math.sqrt(releases) * (1 + MARGIN)


def epsilon_of(multipliers: Iterable[float], delta: float) -> float:
    """ε of Gaussian releases with noise of `multipliers` times their sensitivities, all together, at δ.

    0 for no release; infinity where one has no noise.
    """
    from dp_accounting import get_epsilon_gaussian  # late, for a quick --help

    known = list(multipliers)
    if not known:
        return 0.0
    if min(known) <= 0:
        return math.inf
    return float(get_epsilon_gaussian(1 / math.sqrt(sum(z**-2 for z in known)), delta))
