"""How alike the clients' models change: linear CKA or cosine between changes of their cores.

Linear CKA (Kornblith et al. 2019, 'Similarity of Neural Network Representations Revisited', arXiv
1905.00414) is the cosine between centred Gram matrices, so all pairs of clients are one matrix product. The
debiased form replaces the centring by U-centring, which makes the inner product the unbiased HSIC estimator
of Song et al. 2012 ('Feature Selection via Dependence Maximization', JMLR 13). CE-LoRA (arXiv 2503.23869)
compares clients' cores by CKA.

What to know before use:

- Feed the *change* of each core against the common start; near the start the cores themselves all look alike.
- CKA(X, -X) = 1 and CKA(X, XQ) = 1 for orthogonal Q on the feature side: CKA sees neither a flipped sign
  nor such a rotation. The cosine sees both.
- Biased CKA of two unrelated 8 × 8 matrices averages 0.52; the debiased form averages about 0, but is noisy
  below r = 16.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats, SimilarityError, as_floats

_NEGLIGIBLE = 1e-12  # what is left of a Gram matrix of norm 1 after centring, if it is rounding only


def linear_cka(
    cores: npt.ArrayLike, debiased: bool = True, examples: Literal["rows", "columns"] = "rows"
) -> Floats:
    """Linear CKA between all pairs of N clients, averaged over L layers.

    - `cores`: change of the cores, (N, L, r, r).
    - `debiased`: U-centred Gram matrices, which needs r ≥ 4; otherwise the plain (biased) centring.
    - `examples`: the axis of a core that counts as examples; the other one counts as features. In
      y = B C A x, "rows" are outputs of C and "columns" its inputs.

    Returns (N, N) in [-1, 1] (biased: [0, 1]), symmetric, diagonal 1. A layer in which a client's change is
    zero, or the same for all examples, counts as 0 against everybody; a client with no change at all has 0
    to all others.

    Raises `SimilarityError` for a wrong shape, NaN or infinity, fewer than 4 examples with `debiased`, or
    another word for `examples`.
    """
    x = as_floats("cores", cores, 4)
    _require_filled(x)
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
    """Cosine between the clients' changes, each flattened over all layers.

    - `cores`: change of the cores, (N, L, r, r).

    Returns (N, N) in [-1, 1], symmetric, diagonal 1; a client with no change has 0 to all others.
    Raises `SimilarityError` for a wrong shape, NaN or infinity.
    """
    x = as_floats("cores", cores, 4)
    _require_filled(x)
    return _similarity(_unit(x, axes=(1, 2, 3), negligible=0.0).reshape(len(x), -1), layers=1)


def _require_filled(x: Floats) -> None:
    """Raise `SimilarityError` if one of the axes is empty."""
    if not x.size:
        raise SimilarityError(f"cores: got shape {x.shape}, expected (N, L, r, r) with no axis of length 0")


def _unit(x: Floats, axes: tuple[int, ...], negligible: float) -> Floats:
    """`x` with norm 1 over `axes`; zero where the norm is at most `negligible`."""
    largest = np.abs(x).max(axis=axes, keepdims=True)
    largest = np.where(largest > negligible, largest, np.inf)
    scaled = x / largest  # first by the largest entry: squares of tiny changes would underflow
    norm = np.sqrt((scaled**2).sum(axis=axes, keepdims=True))
    unit: Floats = scaled / np.where(norm > 0, norm, 1.0)
    return unit


def _centre(gram: Floats) -> Floats:
    """$HKH$, $H = I - 11ᵀ/n$, of Gram matrices (..., n, n)."""
    rows = gram.mean(axis=-1, keepdims=True)
    centred: Floats = gram - rows - rows.swapaxes(-1, -2) + gram.mean(axis=(-1, -2), keepdims=True)
    return centred


def _u_centre(gram: Floats) -> Floats:
    """U-centred Gram matrices (..., n, n), n ≥ 4; zero diagonal.

    $⟨K̃, L̃⟩ = n(n-3)·HSIC_1(K, L)$ of Song et al. 2012.
    """
    n = gram.shape[-1]
    off = 1.0 - np.eye(n)
    bare = gram * off
    rows = bare.sum(axis=-1, keepdims=True) / (n - 2)
    total = bare.sum(axis=(-1, -2), keepdims=True) / ((n - 1) * (n - 2))
    centred: Floats = (bare - rows - rows.swapaxes(-1, -2) + total) * off
    return centred


def _similarity(units: Floats, layers: int) -> Floats:
    """Products of rows (N, P), averaged over layers: (N, N) in [-1, 1], diagonal 1."""
    similarity = np.clip(units @ units.T / layers, -1.0, 1.0)
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1.0)
    return similarity
