"""A client's one-time summary of its data: counts, and the moments of diagonal Gaussian components.

A summary is sent as plain arrays, and `Summary.from_arrays` checks them all. Size: 8·dim + 16 bytes per component
(528 at dim = 64), 16 per class, 8 for the noise floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trifed.common.errors import MessageError
from trifed.similarity.checks import Ints

MERGED = -1
"""The label of a component of several merged classes, each of them under the floor."""

MAX_COUNT = 10**9
"""The most examples of one class or component that is accepted, so that sums cannot overflow."""

MOST_CLASSES = 4000
"""The most classes of one client."""

MOST_COMPONENTS = 3
"""The most components of one class, and of the merged classes together."""

MOST_WORK = 2000
"""The largest sum of k² over the classes, with k components each. The time to compare a summary grows with it: at
2000, about a second beside 50 clients with 30 components each."""

MOST_DIM = 1024
"""The largest dimension of a projection."""

LARGEST = 1e18
"""The largest mean, variance and noise floor."""

FIELDS: dict[str, tuple[type[np.generic], int]] = {
    "labels": (np.int64, 1),
    "counts": (np.int64, 1),
    "means": (np.float32, 2),
    "variances": (np.float32, 2),
    "self_distance": (np.float64, 1),
    "class_labels": (np.int64, 1),
    "class_counts": (np.int64, 1),
}


@dataclass(frozen=True, eq=False)
class Summary:
    """A client's data as m diagonal Gaussian components over c classes.

    Attributes:
        labels: (m,) int64, the class of each component; -1 for merged classes.
        counts: (m,) int64, the number of examples behind each component.
        means: (m, dim) float32, $μ$ in projected feature units.
        variances: (m, dim) float32, $σ²$ in squared projected feature units.
        self_distance: $D_{ii}$ ≥ 0, the distance between two halves of the client's examples; 0 if m = 0.
        class_labels: (c,) int64, every class of the client, also of classes without a component.
        class_counts: (c,) int64, the number of examples of each of these classes.
    """

    labels: Ints
    counts: Ints
    means: npt.NDArray[np.float32]
    variances: npt.NDArray[np.float32]
    self_distance: float
    class_labels: Ints
    class_counts: Ints

    @property
    def nbytes(self) -> int:
        """Size of all arrays together in bytes, without names and framing."""
        return sum(array.nbytes for array in self.to_arrays().values())

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the summary as named arrays, `self_distance` as float64 of shape (1,)."""
        return {name: np.array(getattr(self, name), dtype, ndmin=1) for name, (dtype, _) in FIELDS.items()}

    def emptied(self) -> Summary:
        """Return the summary of a client without examples: no components, no classes."""
        return Summary.empty(self.means.shape[1])

    @classmethod
    def empty(cls, dim: int) -> Summary:
        """Return the summary of a client without examples; `dim` is the projected dimension."""
        none, moments = np.zeros(0, np.int64), np.zeros((0, dim), np.float32)
        return cls(none, none, moments, moments, 0.0, none, none)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]], dim: int | None = None) -> Summary:
        """Check received arrays and build a summary from them; the inverse of `to_arrays`.

        Args:
            arrays: The arrays by name.
            dim: The agreed projected dimension; None accepts any.

        Raises:
            MessageError: Missing or extra names, wrong dtypes or shapes, too many classes or components, numbers
                that are not finite or over `LARGEST`, negative variances or noise floor, counts under 1
                (components) or 0 (classes) or over `MAX_COUNT`, repeated classes, or component counts that do not
                add up to those of their classes.
        """
        _check_form(arrays, dim)
        _check_values(arrays)
        copies: dict[str, Any] = {name: np.array(array) for name, array in arrays.items()}
        return cls(**{**copies, "self_distance": float(copies["self_distance"][0])})


def most_bytes(dim: int | None = None, n_labels: int = MOST_CLASSES) -> int:
    """Return the most bytes of a summary's arrays; `dim`: the projected dimension, if known."""
    components = min(MOST_WORK, MOST_COMPONENTS * (n_labels + 1))
    return 8 + 16 * n_labels + components * (16 + 8 * (dim or MOST_DIM))


def _check_form(arrays: Mapping[str, npt.NDArray[np.generic]], dim: int | None) -> None:
    """Raise `MessageError` for wrong names, dtypes or shapes."""
    if set(arrays) != set(FIELDS):
        raise MessageError(f"summary: got the arrays {sorted(arrays)}, expected {sorted(FIELDS)}")
    for name, (dtype, ndim) in FIELDS.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise MessageError(f"summary.{name}: got {got}, expected {np.dtype(dtype)} with {ndim} axes")
    m, width = arrays["means"].shape
    expected = {
        "labels": (m,),
        "counts": (m,),
        "means": (m, width if dim is None else dim),
        "variances": (m, width if dim is None else dim),
        "self_distance": (1,),
        "class_counts": arrays["class_labels"].shape,
    }
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise MessageError(f"summary.{name}: got shape {arrays[name].shape}, expected {shape}")
    if not 1 <= width <= MOST_DIM:
        raise MessageError(f"summary.means: got dimension {width}, expected 1 to {MOST_DIM}")
    n_classes, sizes = len(arrays["class_labels"]), np.unique(arrays["labels"], return_counts=True)[1]
    if n_classes > MOST_CLASSES or (sizes > MOST_COMPONENTS).any() or (sizes**2).sum() > MOST_WORK:
        raise MessageError(
            f"summary: got {n_classes} classes and {m} components, expected at most {MOST_CLASSES} classes, "
            f"{MOST_COMPONENTS} components of each, and fewer with many classes"
        )


def _check_values(arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Raise `MessageError` for impossible numbers, or components that do not add up to their classes."""
    values = {name: arrays[name].astype(np.float64) for name in ("means", "variances", "self_distance")}
    labels, counts, classes, sizes = (
        arrays[name].astype(np.int64) for name in ("labels", "counts", "class_labels", "class_counts")
    )
    own, merged = np.isin(classes, labels), labels == MERGED
    problems = [
        *(
            (f"{n}: got NaN, infinity or a number over {LARGEST:g}", ~(np.abs(v) <= LARGEST))
            for n, v in values.items()
        ),
        *(
            (f"{n}: got a negative number, expected at least 0", values[n] < 0)
            for n in ("variances", "self_distance")
        ),
        *(
            (f"{n}: got a number out of range, expected {low} to {MAX_COUNT}", (v < low) | (v > MAX_COUNT))
            for n, v, low in (("counts", counts, 1), ("class_counts", sizes, 0))
        ),
        (
            "class_labels: got repeated or negative labels, expected distinct ones from 0",
            (classes < 0).any() or len(np.unique(classes)) != len(classes),
        ),
        ("labels: got a class that is not in class_labels", ~np.isin(labels, np.append(classes, MERGED))),
        *(
            (
                f"counts: those of class {label} do not add up to its class_counts",
                counts[labels == label].sum() != n,
            )
            for label, n in zip(classes[own], sizes[own], strict=True)
        ),
        (
            "counts: those of the merged component do not add up to the merged classes",
            merged.any() and counts[merged].sum() != sizes[~own].sum(),
        ),
    ]
    for text, found in problems:
        if np.any(found):
            raise MessageError(f"summary.{text}")
