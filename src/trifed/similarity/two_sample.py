"""Are two clients' data further apart than two samples of one distribution would be? Ratios without units.

The squared distance between two sample means is, on average, the squared distance between the distributions' means
and the sampling noise of both, tr Σ_i/n_i + tr Σ_j/n_j. Divided by that noise it is 1 on average for clients that
draw from one distribution, whatever the features, their dimension and the numbers of examples. This is the squared
t statistic of Welch (1947, Biometrika 34) without the covariances between dimensions.

Of all examples of a client together it asks whether p(x) is the same, label by label whether p(x | y) is: clients
that only have other labels, or more of some, pass the second question and not the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform

from trifed.similarity.checks import Floats, SimilarityError, as_floats
from trifed.similarity.summary import MERGED, Summary


def pooled_moments(summaries: Sequence[Summary]) -> tuple[Floats, Floats, Floats]:
    """All components of a client taken together: means (N, dim), total variances (N,), examples (N,).

    The total variance is tr Σ, unbiased: the components' own and that between them. NaN and 0 examples where a
    summary has no components. Raises `SimilarityError` for no summaries or mixed dimensions.
    """
    widths = {summary.means.shape[1] for summary in summaries}
    if len(widths) != 1:
        raise SimilarityError(
            f"summaries: got dimensions {sorted(widths)}, expected one projection for all clients"
        )
    means = np.full((len(summaries), widths.pop()), np.nan)
    spreads, counts = np.full(len(summaries), np.nan), np.zeros(len(summaries))
    for place, summary in enumerate(summaries):
        n = counts[place] = summary.counts.sum()
        if n < 2:
            continue
        shares = summary.counts / n
        means[place] = shares @ summary.means.astype(np.float64)
        between = ((summary.means - means[place]) ** 2).sum(1)
        spreads[place] = shares @ (summary.variances.astype(np.float64).sum(1) + between) * n / (n - 1)
    return means, spreads, counts


def two_sample_ratio(means: npt.ArrayLike, spreads: npt.ArrayLike, counts: npt.ArrayLike) -> Floats:
    """$T_{ij} = ‖m_i - m_j‖² / (s_i/n_i + s_j/n_j)$: about 1 between clients of one distribution.

    - `means`: $m$, (N, dim). `spreads`: $s = tr Σ$, unbiased, (N,). `counts`: $n$, examples, (N,).

    Returns (N, N), symmetric, zero diagonal; NaN where a client has no moments. Where neither client's examples
    vary at all it is 0 for equal means and infinity for others. Raises `SimilarityError` for shapes that do not
    fit, or negative numbers.
    """
    m = np.asarray(means, np.float64)
    s, n = np.asarray(spreads, np.float64), as_floats("counts", counts, 1)
    if m.ndim != 2 or s.shape != m.shape[:1] or n.shape != m.shape[:1]:
        raise SimilarityError(
            f"means: got {m.shape}, spreads {s.shape}, counts {n.shape}; expected (N, dim), (N,), (N,)"
        )
    if (s < 0).any() or (n < 0).any():
        raise SimilarityError("spreads, counts: hold a negative number, expected at least 0")
    noise = np.divide(s, n, out=np.full(len(s), np.nan), where=n > 0)
    distance = ((m[:, None] - m[None]) ** 2).sum(-1)
    both = noise[:, None] + noise[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.where(distance == 0, 0.0 * both, distance / both)
    np.fill_diagonal(ratio, 0.0)
    return ratio


def shared_label_ratio(summaries: Sequence[Summary]) -> Floats:
    """$T_{ij} = Σ_y ‖m_{iy} - m_{jy}‖² / Σ_y (s_{iy}/n_{iy} + s_{jy}/n_{jy})$ over the labels that both have.

    About 1 where two clients mean the same by their labels, however often each label occurs at either; under 2,
    pooling their examples of a label brings less error in than it takes noise away. A label counts if both give
    moments of it.

    Returns (N, N), symmetric, zero diagonal; NaN where two clients share no such label, or equal examples of it;
    infinity where examples do not vary and differ. Raises `SimilarityError` as `pooled_moments`.
    """
    labels = sorted({int(label) for summary in summaries for label in summary.labels if label != MERGED})
    size = len(summaries)
    distance, noise = np.zeros((size, size)), np.zeros((size, size))
    for label in labels:
        means, spreads, counts = pooled_moments([_of_label(summary, label) for summary in summaries])
        known = np.flatnonzero(np.isfinite(spreads))
        own, pairs = spreads[known] / counts[known], np.ix_(known, known)
        # By differences, so that equal means are exactly 0 apart; pair by pair, never (N, N, dim) at once.
        distance[pairs] += squareform(pdist(means[known], "sqeuclidean")) if len(known) > 1 else 0.0
        noise[pairs] += own[:, None] + own[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = distance / noise
    np.fill_diagonal(ratio, 0.0)
    return ratio


def _of_label(summary: Summary, label: int) -> Summary:
    """The components of one label alone."""
    own = summary.labels == label
    return replace(
        summary, labels=summary.labels[own], counts=summary.counts[own], means=summary.means[own],
        variances=summary.variances[own],
    )  # fmt: skip
