"""Checks that the functions of this package share, and the one error that they raise.

Nothing here knows of clients or messages: it says whether an array can be computed with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trifed.common.errors import TrifedError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class SimilarityError(TrifedError, ValueError):
    """An array or a number from which no similarity can be computed (a `ValueError` too)."""


def as_floats(name: str, value: npt.ArrayLike, ndim: int) -> Floats:
    """`value` as a finite float64 array of `ndim` axes; raises `SimilarityError` otherwise."""
    array = np.asarray(value)
    if array.ndim != ndim:
        raise SimilarityError(f"{name}: got shape {array.shape}, expected {ndim} axes")
    if array.dtype.kind not in "fiu":
        raise SimilarityError(f"{name}: got dtype {array.dtype}, expected real numbers")
    if not np.isfinite(array).all():
        raise SimilarityError(f"{name}: holds NaN or infinity; remove the client or the example it comes from")
    return array.astype(np.float64)


def as_square(name: str, value: npt.ArrayLike) -> Floats:
    """`value` as a finite float64 array of shape (N, N), N ≥ 1; raises `SimilarityError` otherwise."""
    array = as_floats(name, value, 2)
    require_square(name, array)
    return array


def require_square(name: str, array: Floats) -> None:
    """Raise `SimilarityError` unless `array` is (N, N) with N ≥ 1."""
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not len(array):
        raise SimilarityError(f"{name}: got shape {array.shape}, expected (N, N), one row and one column a client")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise `SimilarityError` unless low ≤ value ≤ high (NaN is refused too)."""
    if not low <= value <= high:
        raise SimilarityError(f"{name}: got {value}, expected a number from {low:g} to {high:g}")


def require_at_least(name: str, value: int, low: int) -> None:
    """Raise `SimilarityError` unless value ≥ low."""
    if value < low:
        raise SimilarityError(f"{name}: got {value}, expected at least {low}")
