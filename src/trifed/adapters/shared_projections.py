"""Public frames: the frozen A and B between which a core trains alone (LoRA-XS, arXiv 2405.17604)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from scipy.linalg import eigh

from trifed.common.errors import AdapterError

# Two entries of a singular vector within this relative distance count as equally large. Structured
# weights have exact ties, and rounding in the SVD must not decide which of them fixes the sign.
_TIE = 1e-6

# Entries are hashed on a grid of 1/4096. The SVD runs in float64, so two linear algebra libraries differ
# by about 1e-12: among a million entries one falls on both sides of a grid line with probability about
# 1e-2 or less.
_GRID = 4096.0

# Up to this many rows or columns, whichever are fewer, the whole SVD is taken; it grows with the cube, and of a
# layer of 4096 a thirtieth of the singular vectors is wanted.
_WHOLE = 1024

# The Gram matrix squares the singular values. Down to this share of the largest that costs no more than four of
# float64's sixteen digits.
_SQUARED = 1e-2


def public_frames(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return $A = V_r^\top$ and $B = U_r \Sigma_r$ of `weight`, with signs fixed.

    `weight`: $W_0$, shape (d_out, d_in), any floating dtype and device; rows are outputs. Larger weights are
    decomposed where they lie, so that a GPU shortens it.
    `rank`: r, from 1 to min(d_out, d_in).

    Returns A, shape (r, d_in), orthonormal rows, and B, shape (d_out, r), orthogonal columns whose norms
    are the singular values, largest first; float64 on the CPU. $B A$ is the best rank-r approximation of
    $W_0$ (Eckart-Young). Each row of A has its entry of largest magnitude positive (the first of those
    that tie), so the signs do not depend on the SVD library. Equal singular values leave a rotation open
    that no sign rule can fix.

    Raises `AdapterError` if the weight is not finite, if `rank` is out of range, or if it exceeds the
    numerical rank of the weight: B would have columns of zeros, and the core entries behind them could
    never move.
    """
    rows, columns = weight.shape
    if not 1 <= rank <= min(rows, columns):
        raise AdapterError(f"rank {rank} for a weight of shape {(rows, columns)}: from 1 to {min(rows, columns)}")
    matrix = weight.detach().to(dtype=torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        raise AdapterError("the weight holds values that are not finite: its singular vectors are undefined")
    if min(rows, columns) > max(_WHOLE, 4 * rank):
        found = _largest(matrix, rank)
        if found is not None:
            return fix_signs(*found)
    left, values, right = torch.linalg.svd(matrix.cpu(), full_matrices=False)
    # The threshold of numpy.linalg.matrix_rank, at the precision the weight itself came in.
    precision = torch.finfo(weight.dtype).eps if weight.dtype.is_floating_point else torch.finfo(torch.float32).eps
    usable = int((values > values[0] * max(rows, columns) * min(precision, 1e-6)).sum())
    if rank > usable:
        raise AdapterError(
            f"rank {rank} for a weight of shape {(rows, columns)} whose numerical rank is {usable}: the core "
            f"could not move in {rank - usable} of its directions; use a rank of at most {usable}"
        )
    return fix_signs(left[:, :rank] * values[:rank], right[:rank])


def _largest(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """B and A of a large matrix, signs open, from the eigenvectors of its smaller Gram matrix; on the CPU.

    None where the last singular value is too small against the first for that to be exact.
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
    if not bool(values[-1] > _SQUARED * values[0]):
        return None
    left, right = (vectors * values, scaled / values) if wide else (scaled, vectors)
    return left.cpu(), right.T.cpu()


def fix_signs(b_frame: torch.Tensor, a_frame: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip pairs of (column of B, row of A) until every row of A has its largest entry positive.

    `b_frame`: (d_out, r); `a_frame`: (r, d_in). Returns (A, B) in this order, contiguous; B·A is unchanged.
    """
    size = a_frame.abs()
    ties = size >= size.amax(dim=1, keepdim=True) * (1.0 - _TIE)
    leading = ties.to(torch.int8).argmax(dim=1, keepdim=True)
    signs = torch.where(a_frame.gather(1, leading) < 0, -1.0, 1.0).to(a_frame.dtype)
    return (a_frame * signs).contiguous(), (b_frame * signs.T).contiguous()


def hash_frames(shared_projections: Iterable[tuple[str, torch.Tensor, torch.Tensor]]) -> str:
    """Return the SHA-256, 64 hexadecimal digits, of named frames; the order they come in does not matter.

    `frames`: (layer name, A of shape (r, d_in), B of shape (d_out, r)) for each layer. B enters as its
    largest column norm, to four digits, and its entries relative to that; all entries are rounded to
    1/4096.
    """
    digest = hashlib.sha256()
    for name, a_frame, b_frame in sorted(shared_projections, key=lambda frame: frame[0]):
        a_exact, b_exact = (f.detach().to(device="cpu", dtype=torch.float64) for f in (a_frame, b_frame))
        top = float(b_exact.norm(dim=0).max())
        head = f"{name}|{tuple(a_exact.shape)}|{tuple(b_exact.shape)}|{top:.3e}|"
        digest.update(head.encode("utf-8"))
        for entries in (a_exact, b_exact / top if top > 0 else b_exact):
            digest.update(torch.round(entries * _GRID).numpy().astype("<i2").tobytes())
    return digest.hexdigest()
