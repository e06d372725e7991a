"""Similarity of the clients' model updates: linear CKA or cosine between the changes of their cores.

Linear CKA (Kornblith et al. 2019, 'Similarity of Neural Network Representations Revisited', arXiv
1905.00414) is the cosine between centred Gram matrices, so all pairs of clients are one matrix product. The
debiased form replaces the centring by U-centring, which makes the inner product the unbiased HSIC estimator
of Song et al. 2012 ('Feature Selection via Dependence Maximization', JMLR 13). CE-LoRA (arXiv 2503.23869)
compares clients' cores by CKA.

Notes for use:

- Pass the *change* of each core from the common initialisation; in early rounds the cores themselves are all
  similar.
- CKA(X, -X) = 1 and CKA(X, XQ) = 1 for orthogonal Q on the feature side: CKA is invariant to a flipped sign and
  to such a rotation. The cosine is not.
- Biased CKA of two unrelated 8 × 8 matrices averages 0.52; the debiased form averages about 0, but is noisy
  below r = 16.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats, SimilarityError, as_floats

_NEGLIGIBLE = 1e-12  # largest entry of a centred Gram matrix of norm 1 that rounding alone can explain


def linear_cka(
    cores: npt.ArrayLike, debiased: bool = True, examples: Literal["rows", "columns"] = "rows"
) -> Floats:
    """Return the linear CKA between all pairs of N clients, averaged over L layers.

    Args:
        cores: Change of the cores, (N, L, r, r).
        debiased: Use U-centred Gram matrices, which need r ≥ 4, instead of plain (biased) centring.
        examples: The axis of a core that counts as examples; the other one counts as features. In
            y = B C A x, "rows" are outputs of C and "columns" its inputs.

    Returns:
        Similarities (N, N) in [-1, 1] (biased: [0, 1]), symmetric, diagonal 1. A layer in which a client's
        change is zero, or the same for all examples, counts as 0 with all other clients; a client without
        any change has 0 with all others.

    Raises:
        SimilarityError: A wrong shape, NaN or infinity, fewer than 4 examples with `debiased`, or another
            value of `examples`.
    """
    x = _as_cores(cores)
    if examples not in ("rows", "columns"):
        raise SimilarityError(f"examples: got {examples!r}, expected 'rows' or 'columns'")
    if examples == "columns":
        x = x.swapaxes(2, 3)
    n = x.shape[2]
    if debiased and n < 4:
        raise SimilarityError(
            f"cores: got {n} examples in each ({examples}), expected at least 4 for debiased CKA; "
            "use a rank of 4 or more, debiased=False, or cosine"
        )
    scaled = _unit(x, axes=(2, 3), negligible=0.0)
    gram = _unit(scaled @ scaled.swapaxes(2, 3), axes=(2, 3), negligible=0.0)
    centred = _unit(_u_centre(gram) if debiased else _centre(gram), axes=(2, 3), negligible=_NEGLIGIBLE)
    return _similarity(centred.reshape(len(x), -1), layers=x.shape[1])


def cosine(cores: npt.ArrayLike) -> Floats:
    """Return the cosine between the clients' changes, each flattened over all layers.

    Args:
        cores: Change of the cores, (N, L, r, r).

    Returns:
        Cosines (N, N) in [-1, 1], symmetric, diagonal 1; a client without any change has 0 with all others.

    Raises:
        SimilarityError: A wrong shape, NaN or infinity.
    """
    x = _as_cores(cores)
    return _similarity(_unit(x, axes=(1, 2, 3), negligible=0.0).reshape(len(x), -1), layers=1)


def _as_cores(cores: npt.ArrayLike) -> Floats:
    """Convert `cores` to finite float64 (N, L, r, r), or raise `SimilarityError`, also if an axis is empty."""
    x = as_floats("cores", cores, 4)
    if not x.size:
        raise SimilarityError(f"cores: got shape {x.shape}, expected (N, L, r, r) with no axis of length 0")
    return x


def _unit(x: Floats, axes: tuple[int, ...], negligible: float) -> Floats:
    """Scale `x` to norm 1 over `axes`, or to zero where its largest entry is at most `negligible`."""
    largest = np.abs(x).max(axis=axes, keepdims=True)
    largest = np.where(largest > negligible, largest, np.inf)
    scaled = x / largest  # divide by the largest entry first: squares of tiny changes would underflow
    norm = np.sqrt((scaled**2).sum(axis=axes, keepdims=True))
    return np.asarray(scaled / np.where(norm > 0, norm, 1.0), np.float64)


def _centre(gram: Floats) -> Floats:
    """Return $HKH$, $H = I - 11ᵀ/n$, of Gram matrices (..., n, n)."""
    rows = gram.mean(axis=-1, keepdims=True)
    return np.asarray(gram - rows - rows.swapaxes(-1, -2) + gram.mean(axis=(-1, -2), keepdims=True), np.float64)


def _u_centre(gram: Floats) -> Floats:
    """Return U-centred Gram matrices (..., n, n), n ≥ 4, with a zero diagonal.

    $⟨K̃, L̃⟩ = n(n-3)·HSIC_1(K, L)$ of Song et al. 2012.
    """
    n = gram.shape[-1]
    off = 1.0 - np.eye(n)
    bare = gram * off
    rows = bare.sum(axis=-1, keepdims=True) / (n - 2)
    total = bare.sum(axis=(-1, -2), keepdims=True) / ((n - 1) * (n - 2))
    return np.asarray((bare - rows - rows.swapaxes(-1, -2) + total) * off, np.float64)


def _similarity(units: Floats, layers: int) -> Floats:
    """Return products of rows (N, P), averaged over layers: (N, N) in [-1, 1], diagonal 1."""
    similarity = np.clip(units @ units.T / layers, -1.0, 1.0)
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1.0)
    return similarity
