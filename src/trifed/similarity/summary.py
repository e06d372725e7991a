"""What a client tells once about its data: counts, and the moments of diagonal Gaussian components.

A summary crosses the wire as plain arrays, and `Summary.from_arrays` is the gate: what it lets through can be
computed with. Size: 8·dim + 16 bytes a component (528 at dim = 64), 16 a class, 8 for the noise floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trifed.common.errors import MessageError
from trifed.similarity.checks import Ints

MERGED = -1
"""The label of a component that stands for several classes, each of them under the floor."""

MAX_COUNT = 10**9
"""More examples than this in one class or component are refused: absurd, and sums must not overflow."""

_FIELDS: dict[str, tuple[type[np.generic], int]] = {
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

    - `labels`: (m,) int64, the class of each component; -1 for classes that were merged.
    - `counts`: (m,) int64, examples that each component stands on.
    - `means`, `variances`: (m, dim) float32, $μ$ and $σ²$ in projected feature units and their square.
    - `self_distance`: $D_{ii}$ ≥ 0, the distance between two halves of the client's own examples; 0 if m = 0.
    - `class_labels`, `class_counts`: (c,) int64, every class that the client has and its examples, also
      where no moments are given (m = 0: too few examples in all).
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
        """Bytes of all arrays together, as they are sent (names and framing not counted)."""
        return sum(array.nbytes for array in self.to_arrays().values())

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The summary as named arrays, `self_distance` as float64 of shape (1,)."""
        return {
            "labels": self.labels,
            "counts": self.counts,
            "means": self.means,
            "variances": self.variances,
            "self_distance": np.array([self.self_distance], dtype=np.float64),
            "class_labels": self.class_labels,
            "class_counts": self.class_counts,
        }

    def emptied(self) -> Summary:
        """What a client tells that has no examples: no components, no classes."""
        none = np.zeros(0, np.int64)
        return Summary(none, none, self.means[:0], self.variances[:0], 0.0, none, none)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]], dim: int | None = None) -> Summary:
        """The inverse of `to_arrays`, for arrays that someone else sent.

        `dim`: the projected dimension agreed on; None accepts any (then mixed dimensions are noticed only
        when distances are computed).

        Raises `MessageError` for missing or extra names, wrong dtypes or shapes, NaN or infinity, negative
        variances or noise floor, counts under 1 (components) or under 0 (classes) or over `MAX_COUNT`,
        repeated classes, and component counts that do not add up to those of the classes.
        """
        _check_form(arrays, dim)
        _check_values(arrays)
        _check_counts(arrays)
        copies = {name: np.array(array) for name, array in arrays.items()}
        return cls(
            labels=copies["labels"].astype(np.int64),
            counts=copies["counts"].astype(np.int64),
            means=copies["means"].astype(np.float32),
            variances=copies["variances"].astype(np.float32),
            self_distance=float(copies["self_distance"].astype(np.float64)[0]),
            class_labels=copies["class_labels"].astype(np.int64),
            class_counts=copies["class_counts"].astype(np.int64),
        )


def _check_form(arrays: Mapping[str, npt.NDArray[np.generic]], dim: int | None) -> None:
    """Names, dtypes and shapes."""
    if set(arrays) != set(_FIELDS):
        raise MessageError(f"summary: got the arrays {sorted(arrays)}, expected {sorted(_FIELDS)}")
    for name, (dtype, ndim) in _FIELDS.items():
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
    if width < 1:
        raise MessageError("summary.means: got dimension 0, expected at least 1")


def _check_values(arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Finite floats, variances and the noise floor at least 0."""
    for name in ("means", "variances", "self_distance"):
        if not np.isfinite(arrays[name].astype(np.float64)).all():
            raise MessageError(f"summary.{name}: holds NaN or infinity, expected finite numbers")
    for name in ("variances", "self_distance"):
        if (arrays[name].astype(np.float64) < 0).any():
            raise MessageError(f"summary.{name}: holds a negative number, expected at least 0")


def _check_counts(arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Plausible counts, and components that add up to their classes."""
    labels, counts, classes, sizes = (
        arrays[name].astype(np.int64) for name in ("labels", "counts", "class_labels", "class_counts")
    )
    for name, values, low in (("counts", counts, 1), ("class_counts", sizes, 0)):
        if ((values < low) | (values > MAX_COUNT)).any():
            raise MessageError(f"summary.{name}: holds a number outside {low} to {MAX_COUNT}")
    if len(np.unique(classes)) != len(classes) or (classes < 0).any():
        raise MessageError("summary.class_labels: expected distinct labels of at least 0")
    if not np.isin(labels, np.append(classes, MERGED)).all():
        raise MessageError("summary.labels: holds a class that class_labels lacks")
    own = np.isin(classes, labels)
    for label, size in zip(classes[own], sizes[own], strict=True):
        if counts[labels == label].sum() != size:
            raise MessageError(f"summary.counts: those of class {label} do not add up to its class_counts")
    if (labels == MERGED).any() and counts[labels == MERGED].sum() != sizes[~own].sum():
        raise MessageError("summary.counts: those of the merged component do not add up to the merged classes")
