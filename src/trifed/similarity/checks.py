"""Checks of arrays and numbers that the functions of this package share, and the error that they raise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trifed.common.errors import TrifedError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class SimilarityError(TrifedError, ValueError):
    """An array or a number from which no similarity can be computed (a `ValueError` too)."""


def as_floats(name: str, value: npt.ArrayLike, ndim: int) -> Floats:
    """Convert `value` to a finite float64 array of `ndim` axes.

    Raises:
        SimilarityError: Another number of axes, no real numbers, NaN or infinity.
    """
    array = np.asarray(value)
    if array.ndim != ndim:
        raise SimilarityError(f"{name}: got shape {array.shape}, expected {ndim} axes")
    if array.dtype.kind not in "fiu":
        raise SimilarityError(f"{name}: got dtype {array.dtype}, expected real numbers")
    if not np.isfinite(array).all():
        raise SimilarityError(
            f"{name}: got NaN or infinity, expected finite numbers; remove the client or example they come from"
        )
    return array.astype(np.float64)


def as_square(name: str, value: npt.ArrayLike) -> Floats:
    """Convert `value` to a finite float64 array of shape (N, N), N ≥ 1.

    Raises:
        SimilarityError: Another shape, no real numbers, NaN or infinity.
    """
    array = as_floats(name, value, 2)
    require_square(name, array)
    return array


def require_square(name: str, array: Floats) -> None:
    """Raise `SimilarityError` unless `array` is (N, N) with N ≥ 1."""
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not len(array):
        raise SimilarityError(f"{name}: got shape {array.shape}, expected (N, N) for N clients")


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Raise `SimilarityError` unless low ≤ value ≤ high; NaN raises too."""
    if not low <= value <= high:
        raise SimilarityError(f"{name}: got {value}, expected a number from {low:g} to {high:g}")


def require_at_least(name: str, value: int, low: int) -> None:
    """Raise `SimilarityError` unless value ≥ low."""
    if value < low:
        raise SimilarityError(f"{name}: got {value}, expected at least {low}")
