"""Shared projections: the frozen A and B between which a core trains alone (LoRA-XS, arXiv 2405.17604)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from scipy.linalg import eigh

from trifed.common.errors import AdapterError

# Two entries of a singular vector within this relative distance count as equally large. Structured
# weights have exact ties, and rounding in the SVD must not decide which of them fixes the sign.
_TIE_TOLERANCE = 1e-6

# Entries are hashed on a grid of 1/4096. The SVD runs in float64, so two linear algebra libraries differ
# by about 1e-12: among a million entries one falls on both sides of a grid line with probability about
# 1e-2 or less.
_GRID = 4096.0

# Largest smaller side for which the full SVD is computed. Its time grows with the cube of that side, and a layer
# of side 4096 needs only about a thirtieth of its singular vectors.
_MAX_FULL_SVD = 1024

# Smallest ratio of singular values for which the Gram matrix is accurate enough. It squares the values, which
# costs at most four of float64's sixteen digits at this ratio.
_MIN_GRAM_RATIO = 1e-2


def svd_projections(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return $A = V_r^\top$ and $B = U_r \Sigma_r$ of `weight`, with signs fixed.

    $B A$ is the best rank-r approximation of $W_0$ (Eckart-Young). The entry of largest magnitude in each row of
    A is positive (the first one of a tie), so the signs do not depend on the SVD library. Equal singular values
    leave a rotation open that no sign rule can fix.

    Args:
        weight: $W_0$, shape (d_out, d_in), any floating dtype and device; rows are outputs. Large weights are
            decomposed on their own device, so that a GPU speeds it up.
        rank: r, from 1 to min(d_out, d_in).

    Returns:
        A, shape (r, d_in), with orthonormal rows, and B, shape (d_out, r), with orthogonal columns whose norms are
        the singular values, largest first; float64 on the CPU.

    Raises:
        AdapterError: The weight is not finite, or `rank` is out of range or exceeds the numerical rank of the
            weight. B would then have columns of zeros, and the core entries behind them could never move.
    """
    rows, columns = weight.shape
    if not 1 <= rank <= min(rows, columns):
        raise AdapterError(
            f"rank: got {rank} for a weight of shape {(rows, columns)}, expected 1 to {min(rows, columns)}"
        )
    matrix = weight.detach().to(dtype=torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        raise AdapterError("weight: got NaN or infinity, expected finite values; check the base model's file")
    if min(rows, columns) > max(_MAX_FULL_SVD, 4 * rank):
        factors = _top_singular_pairs(matrix, rank)
        if factors is not None:
            return fix_signs(*factors)
    left, values, right = torch.linalg.svd(matrix.cpu(), full_matrices=False)
    # The threshold of numpy.linalg.matrix_rank, at the precision the weight itself came in.
    precision = torch.finfo(weight.dtype).eps if weight.dtype.is_floating_point else torch.finfo(torch.float32).eps
    usable = int((values > values[0] * max(rows, columns) * min(precision, 1e-6)).sum())
    if rank > usable:
        raise AdapterError(
            f"rank: got {rank} for a weight of shape {(rows, columns)} whose numerical rank is {usable}; the core "
            f"could not move in {rank - usable} of its directions; use a rank of at most {usable}"
        )
    return fix_signs(left[:, :rank] * values[:rank], right[:rank])


def _top_singular_pairs(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return B and A of a large matrix from the eigenvectors of its smaller Gram matrix, without fixed signs.

    Returns:
        B (d_out, r) and A (r, d_in) on the CPU, or None if the last singular value is too small compared with the
        first one for an accurate result.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    gram = tall.T @ tall
    if gram.is_cuda:
        vectors = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
    else:
        size = len(gram)
        vectors = torch.from_numpy(eigh(gram.numpy(), subset_by_index=[size - rank, size - 1])[1])
    vectors = vectors.flip(1)
    scaled = tall @ vectors
    values = scaled.norm(dim=0)
    if not bool(values[-1] > _MIN_GRAM_RATIO * values[0]):
        return None
    left, right = (vectors * values, scaled / values) if wide else (scaled, vectors)
    return left.cpu(), right.T.cpu()


def fix_signs(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip pairs of (column of B, row of A) so that the largest entry of every row of A is positive.

    Args:
        b: B, shape (d_out, r).
        a: A, shape (r, d_in).

    Returns:
        A and B in this order, contiguous; B·A is unchanged.
    """
    size = a.abs()
    ties = size >= size.amax(dim=1, keepdim=True) * (1.0 - _TIE_TOLERANCE)
    leading = ties.to(torch.int8).argmax(dim=1, keepdim=True)
    signs = torch.where(a.gather(1, leading) < 0, -1.0, 1.0).to(a.dtype)
    return (a * signs).contiguous(), (b * signs.T).contiguous()


def hash_projections(shared_projections: Iterable[tuple[str, torch.Tensor, torch.Tensor]]) -> str:
    """Return the SHA-256, 64 hexadecimal digits, of named projections in any order.

    B enters as its largest column norm, to four digits, and its entries relative to that norm. All entries are
    rounded to 1/4096.

    Args:
        shared_projections: (layer name, A of shape (r, d_in), B of shape (d_out, r)) for each layer.
    """
    digest = hashlib.sha256()
    for name, a, b in sorted(shared_projections, key=lambda item: item[0]):
        a_exact, b_exact = (f.detach().to(device="cpu", dtype=torch.float64) for f in (a, b))
        top = float(b_exact.norm(dim=0).max())
        digest.update(f"{name}|{tuple(a_exact.shape)}|{tuple(b_exact.shape)}|{top:.3e}|".encode())
        for entries in (a_exact, b_exact / top if top > 0 else b_exact):
            digest.update(torch.round(entries * _GRID).numpy().astype("<i2").tobytes())
    return digest.hexdigest()
