"""Weights of labels in the training loss, by the setting `training.class_weights`.

A client computes them from its own training labels. They change its training alone, and are never sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import DataError, nearest
from trifed.data.columns import spelling

Weights = NDArray[np.float32]


def class_weights(
    given: Literal["balanced"] | Mapping[str, float] | None, names: Sequence[str], labels: NDArray[np.int64]
) -> Weights | None:
    """Return the weight of each label in a client's training loss, (n_labels,); None without the setting.

    "balanced" is n / (k · n_y), as scikit-learn computes it: n training examples of the client, n_y of them with
    the label, k labels that occur. Their mean over the examples is 1. A label without an example gets 1, which
    changes nothing, because no example has it.

    Args:
        given: The setting: "balanced", a number by label (others get 1), or None.
        names: Names of the labels, by index.
        labels: The client's training labels, (n,).

    Raises:
        DataError: The setting names a label that there is not.
    """
    if given is None:
        return None
    weights = np.ones(len(names), np.float32)
    if isinstance(given, str):
        from sklearn.utils.class_weight import compute_class_weight  # takes a second to import

        present = np.unique(labels)
        if len(present):
            weights[present] = compute_class_weight("balanced", classes=present, y=labels)
        return weights
    index = {spelling(name): place for place, name in enumerate(names)}
    for label, weight in given.items():
        if spelling(label) not in index:
            raise DataError(
                f"training.class_weights: got the label {label!r}, expected one of {', '.join(names)}"
                f"{nearest(label, names)}"
            )
        weights[index[spelling(label)]] = weight
    return weights
