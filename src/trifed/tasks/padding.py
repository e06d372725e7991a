"""Rows of unlike lengths as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MULTIPLE = 8
"""Widths that kernels like."""


def padded(rows: Sequence[Sequence[int]], fill: int = 0) -> NDArray[np.int64]:
    """The rows side by side with `fill` behind the shorter ones, (n, width); n ≥ 1, width a multiple of 8."""
    width = -(-max(map(len, rows)) // MULTIPLE) * MULTIPLE
    made = np.full((len(rows), width), fill, np.int64)
    for place, row in enumerate(rows):
        made[place, : len(row)] = row
    return made
