"""Noise in sealed sums: each client adds its share, and only the sum has all of it.

The distributed discrete Gaussian mechanism of Kairouz, Liu and Steinke, ICML 2021 (arXiv 2102.06387). With the
clip C, the noise multiplier z, D numbers in an update, and m clients that keep their noise secret:

    d = change · min(1, C' / ‖change‖₂)        C' = C − s·√D / 2
    q = rint(d / s)                            ‖q‖₂ ≤ ‖d‖₂ / s + √D / 2 ≤ C / s
    y = q + N_Z(0, σ²)                         σ = z·C / (s·√m), D independent discrete Gaussians

Rounding moves each number by at most 1/2, so a vector by at most √D / 2. Clipping to C' makes up for that: the
rounded change has at most the norm C / s, whatever the change was. The step s follows from public settings alone:
s = C / (16·√D), or less if σ would be under 4.

The noise of m clients together has the deviation z·C/s. By Proposition 14 of the paper the sum has then the
concentrated differential privacy of a Gaussian mechanism with multiplier z, but for a term of at most
10·m·√D·e^(−π²σ²), which σ ≥ 4 keeps below 1e-55. Noise of further clients only adds to it. Nothing is carried over
to the next round: neither what clipping cuts off nor what rounding loses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import RunError
from trifed.methods.packing import Vector
from trifed.privacy import Noise, clipped, discrete_gaussian

GRAIN = 16
"""Steps in the root mean square of a change of the norm C, if the noise needs no finer ones."""
LEAST_DEVIATION = 4.0
"""Least standard deviation of one client's noise, in steps."""
MOST_BITS = 32
"""Most bits of an integer that `privacy.masking` has masks for."""
TAIL = 9.0
"""Standard deviations of the noise on a sum that its range has room for."""


@dataclass(frozen=True)
class SumNoise:
    """The noise of a run's sealed sums.

    Attributes:
        clip: C, the largest L2 norm of a client's change.
        multiplier: z, the deviation of the noise of `clients` clients together, in units of `clip`.
        clients: m, the clients of a sum that are assumed to keep their noise secret.
    """

    clip: float
    multiplier: float
    clients: int

    def step(self, size: int) -> float:
        """Return the step s of a change of `size` numbers."""
        of_signal = self.clip / (GRAIN * math.sqrt(max(1, size)))
        of_noise = self.multiplier * self.clip / (LEAST_DEVIATION * math.sqrt(self.clients))
        return min(of_signal, of_noise)

    def deviation(self, size: int) -> float:
        """Return the standard deviation σ of one client's noise on a number, in steps."""
        return self.multiplier * self.clip / (self.step(size) * math.sqrt(self.clients))

    def most(self, clients: int, size: int) -> int:
        """Return the largest absolute value of a number in a sum of `clients` clients, in steps."""
        signal, noise = clients * self.clip / self.step(size), TAIL * math.sqrt(clients) * self.deviation(size)
        return math.ceil(signal + noise)

    def bits(self, clients: int, size: int) -> int:
        """Return the bits of a number in a sum of `clients` clients.

        An eighth of the range at least is empty, so that a sum whose masks do not cancel is found.

        Raises:
            RunError: Masks have no integers that are so large.
        """
        most = self.most(clients, size)
        bits = (2 * most + most // 4).bit_length()
        if bits > MOST_BITS:
            raise RunError(
                f"privacy.update: the noised sum of {size:,} numbers of {clients} clients needs {bits} bits a "
                f"number, and {MOST_BITS} is the most; send fewer numbers (adapter.rank), or set a larger epsilon"
            )
        return bits

    def rounded(self, change: Vector) -> NDArray[np.int64]:
        """Return a change, (n_values,), clipped and rounded to steps; its L2 norm is at most clip / step."""
        step = self.step(len(change))
        limit = (self.clip - step * math.sqrt(len(change)) / 2) * (1 - 1e-9)  # room for the rounding of floats
        return np.rint(clipped(change, limit) / step).astype(np.int64)

    def noised(self, change: Vector, noise: Noise) -> NDArray[np.int64]:
        """Return `rounded` with this client's share of the noise, (n_values,)."""
        return self.rounded(change) + discrete_gaussian(self.deviation(len(change)), len(change), noise)
