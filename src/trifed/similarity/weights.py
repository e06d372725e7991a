"""Personalised averages from similarities, $C̄_i = Σ_j w_{ij} C_j$ with W row-stochastic.

Source: CE-LoRA, arXiv 2503.23869. The softmax, the explicit self-weight and the decay are not from the paper.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats, Ints, SimilarityError, as_floats, as_square, require_between


def combine(s_data: npt.ArrayLike, s_model: npt.ArrayLike, data_share: float = 0.5) -> Floats:
    """Return $S = λ·S_{data} + (1-λ)·S_{model}$, (N, N).

    Args:
        s_data: $S_{data}$, (N, N).
        s_model: $S_{model}$, (N, N).
        data_share: λ in [0, 1].

    Raises:
        SimilarityError: Shapes that differ, NaN or infinity, or λ outside [0, 1].
    """
    data, model = as_square("s_data", s_data), as_square("s_model", s_model)
    if data.shape != model.shape:
        raise SimilarityError(f"s_model: got shape {model.shape}, expected that of s_data, {data.shape}")
    require_between("data_share", data_share, 0.0, 1.0)
    return data_share * data + (1.0 - data_share) * model


def mixing_weights(
    similarity: npt.ArrayLike,
    *,
    self_weight: float,
    temperature: float,
    decay: npt.ArrayLike | None = None,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> Floats:
    """Return the weights $w_{ij}$ of client j's core in client i's average.

    Args:
        similarity: $S$, (N, N); its diagonal is not used.
        self_weight: $w_{ii}$, in [0, 1].
        temperature: Positive. A small one gives weight only to the most similar clients, a large one equal
            weights to all others.
        decay: (N,) in [0, 1], the factor on each client's core in the averages of others, for the age of its
            upload; None for all 1. It does not change the self-weight.
        allowed: (N, N), True if client j may have weight in client i's average; None for all.

    Returns:
        W, (N, N), rows summing to 1: $w_{ij} ∝ decay_j · exp(S_{ij}/temperature)$ for j ≠ i, scaled to
        1 - self_weight. If no other client has weight (N = 1, or all others decayed to 0), $w_{ii}$ is 1.

    Raises:
        SimilarityError: A wrong shape, NaN or infinity, or a number out of its range.
    """
    s = as_square("similarity", similarity)
    n = len(s)
    require_between("self_weight", self_weight, 0.0, 1.0)
    if not 0.0 < temperature < np.inf:
        raise SimilarityError(f"temperature: got {temperature}, expected a finite number over 0")
    share = np.ones(n) if decay is None else as_floats("decay", decay, 1)
    if share.shape != (n,) or (share < 0).any() or (share > 1).any():
        raise SimilarityError(f"decay: got {share.shape}, expected ({n},) with numbers from 0 to 1")
    counted = ~np.eye(n, dtype=bool) & (share > 0)[None, :]
    if allowed is not None:
        counted &= allowed
    alone = ~counted.any(axis=1)
    scores = _scores(s, share, counted, temperature)
    others = np.where(counted, np.exp(scores), 0.0)
    total = np.where(alone, 1.0, others.sum(axis=1))
    weights: Floats = others / total[:, None] * (1.0 - self_weight)
    np.fill_diagonal(weights, np.where(alone, 1.0, self_weight))
    return weights


def _scores(s: Floats, share: Floats, counted: npt.NDArray[np.bool_], temperature: float) -> Floats:
    """Return $S_{ij}/temperature + log decay_j$ minus each row's largest, (N, N); -inf for a weight of 0."""
    top = np.where(counted, s, -np.inf).max(axis=1, keepdims=True)
    gap = np.where(counted, s - np.where(np.isfinite(top), top, 0.0), 0.0)
    with np.errstate(over="ignore"):  # a tiny temperature correctly gives -inf, weight 0
        scores = np.where(counted, gap / temperature + np.log(np.where(share > 0, share, 1.0)), -np.inf)
    best = scores.max(axis=1, keepdims=True)
    return np.asarray(scores - np.where(np.isfinite(best), best, 0.0), np.float64)


def mix(weights: npt.ArrayLike, values: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """Return $C̄_i = Σ_j w_{ij} C_j$ for flattened cores.

    Args:
        weights: W, (M, N), one row per average; M = N for personalised averages, M = 1 for a global one.
        values: (N, P), one row per client.

    Returns:
        Averages (M, P), computed in float64 and converted to the dtype of `values` if that is a float dtype.

    Raises:
        SimilarityError: Shapes that do not fit, NaN or infinity.
    """
    w, v = as_floats("weights", weights, 2), as_floats("values", values, 2)
    if len(v) != w.shape[1]:
        raise SimilarityError(f"values: got {len(v)} rows, expected {w.shape[1]}, one a client")
    dtype = np.asarray(values).dtype
    return (w @ v).astype(dtype if dtype.kind == "f" else np.float64)


def different_rows(shares: npt.NDArray[np.bool_]) -> tuple[Floats, Ints]:
    """Return the distinct rows of `shares`, so that clients with the same average compute it once.

    Args:
        shares: (N, M), True where a client's average includes another one.

    Returns:
        The distinct rows, (k, M), as 0 and 1 in order of first occurrence, and the index of each row's distinct
        row, (N,).
    """
    seen: dict[bytes, int] = {}
    which = [seen.setdefault(row.tobytes(), len(seen)) for row in np.packbits(shares, axis=1)]
    first = np.unique(which, return_index=True)[1]
    return shares[first].astype(np.float64), np.array(which, np.int64)
