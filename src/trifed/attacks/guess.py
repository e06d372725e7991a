"""Who sees nothing of a client: what can be guessed of its batch from what such data look like elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def guess_tokens(known: Sequence[Sequence[int]], length: int, batch: int) -> list[list[int]]:
    """The likeliest bag of `length` tokens, as `batch` texts.

    `known`: texts of others. Of each token as many as are expected, the most frequent first: with n tokens of
    probability p, p · n rounded to the nearest, at least one, until there are n.
    """
    counts = Counter(token for text in known for token in text)
    total, bag = max(1, counts.total()), []
    for token, count in counts.most_common():
        bag += [token] * max(1, round(length * count / total))
        if len(bag) >= length:
            break
    bag = bag[:length]
    return [bag[place::batch] for place in range(batch)]


def guess_labels(known: NDArray[np.int64], batch: int) -> list[int]:
    """The likeliest labels of a batch, by how frequent they are elsewhere."""
    counts = Counter(int(label) for label in known)
    total, found = max(1, len(known)), []
    for label, count in counts.most_common():
        found += [label] * max(1, round(batch * count / total))
    return found[:batch]
