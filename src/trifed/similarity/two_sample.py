"""Two-sample ratios: the distance of two clients' data relative to the noise of sampling from one distribution.

The squared distance between two sample means is, on average, the squared distance between the distributions' means
and the sampling noise of both, tr Σ_i/n_i + tr Σ_j/n_j. Divided by that noise it is 1 on average for clients that
draw from one distribution, whatever the features, their dimension and the numbers of examples. This is the squared
t statistic of Welch (1947, Biometrika 34) without the covariances between dimensions.

Over all examples of a client together the ratio compares p(x); label by label it compares p(x | y). Clients that
differ only in their label frequencies differ in the first and not in the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats, SimilarityError, as_floats
from trifed.similarity.summary import MERGED, Summary


def pooled_moments(summaries: Sequence[Summary]) -> tuple[Floats, Floats, Floats]:
    """Pool all components of each client.

    Returns:
        Means (N, dim), total variances (N,) and numbers of examples (N,). The total variance is tr Σ, unbiased:
        within and between components. A summary without components has NaN and 0 examples.

    Raises:
        SimilarityError: No summaries, or mixed dimensions.
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
    """Return $T_{ij} = ‖m_i - m_j‖² / (s_i/n_i + s_j/n_j)$, about 1 between clients of one distribution.

    Args:
        means: $m$, (N, dim).
        spreads: Unbiased total variances $s = tr Σ$, (N,).
        counts: Numbers of examples $n$, (N,).

    Returns:
        Ratios (N, N), symmetric, zero diagonal; NaN for a client without moments. If neither client's examples
        vary, the ratio is 0 for equal means and infinity otherwise.

    Raises:
        SimilarityError: Shapes that do not fit, or negative numbers.
    """
    m = np.asarray(means, np.float64)
    s, n = np.asarray(spreads, np.float64), as_floats("counts", counts, 1)
    if m.ndim != 2 or s.shape != m.shape[:1] or n.shape != m.shape[:1]:
        raise SimilarityError(
            f"means: got {m.shape}, spreads {s.shape}, counts {n.shape}; expected (N, dim), (N,), (N,)"
        )
    if (s < 0).any() or (n < 0).any():
        raise SimilarityError("spreads, counts: got a negative number, expected at least 0")
    noise = np.divide(s, n, out=np.full(len(s), np.nan), where=n > 0)
    distance = ((m[:, None] - m[None]) ** 2).sum(-1)
    both = noise[:, None] + noise[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = np.where(distance == 0, 0.0 * both, distance / both)
    np.fill_diagonal(ratio, 0.0)
    return ratio


def shared_label_ratio(summaries: Sequence[Summary]) -> Floats:
    """Return $T_{ij} = Σ_y ‖m_{iy} - m_{jy}‖² / Σ_y (s_{iy}/n_{iy} + s_{jy}/n_{jy})$ over shared labels.

    The ratio is about 1 if two clients use their labels in the same way, for any label frequencies. Below 2,
    pooling their examples of a label removes more noise than it adds error. A label counts if both summaries have
    components of it.

    Returns:
        Ratios (N, N), symmetric, zero diagonal; NaN if two clients share no such label, or have equal examples of
        it; infinity if their examples differ and do not vary.

    Raises:
        SimilarityError: No summaries, or mixed dimensions.
    """
    moments = LabelMoments.of(summaries)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = moments.distances() / moments.noises()
    np.fill_diagonal(ratio, 0.0)
    return ratio


@dataclass(frozen=True, eq=False)
class LabelMoments:
    """Moments of N clients' examples of L labels, from their summaries.

    Attributes:
        known: Whether a client's summary has components of a label, (N, L).
        means: Means, (N, L, dim); 0 where unknown.
        noise: Squared standard errors of the means, tr Σ / n, (N, L); 0 where unknown.
    """

    known: npt.NDArray[np.bool_]
    means: Floats
    noise: Floats

    @classmethod
    def of(cls, summaries: Sequence[Summary]) -> LabelMoments:
        """Return the moments of every label that is in a summary.

        Raises:
            SimilarityError: No summaries, or mixed dimensions.
        """
        labels = sorted({int(label) for summary in summaries for label in summary.labels if label != MERGED})
        width = summaries[0].means.shape[1] if len(summaries) else 0
        shape = (len(summaries), len(labels))
        known, means, noise = np.zeros(shape, bool), np.zeros((*shape, width)), np.zeros(shape)
        for place, label in enumerate(labels):
            found, spreads, counts = pooled_moments([_of_label(summary, label) for summary in summaries])
            has = known[:, place] = np.isfinite(spreads)
            means[has, place] = found[has]
            noise[has, place] = spreads[has] / counts[has]
        return cls(known, means, noise)

    def distances(self) -> Floats:
        """Return $Σ_y ‖m_{iy} - m_{jy}‖²$ over the labels that both have, (N, N)."""
        # Imported late: a site's node imports this file often.
        from scipy.spatial.distance import pdist, squareform

        distance = np.zeros((len(self.known), len(self.known)))
        for label in range(self.known.shape[1]):
            known = np.flatnonzero(self.known[:, label])
            if len(known) > 1:
                # pdist subtracts, so that equal means have distance exactly 0, and never holds (N, N, dim).
                means = self.means[known, label]
                distance[np.ix_(known, known)] += squareform(pdist(means, "sqeuclidean"))
        return distance

    def noises(self) -> Floats:
        """Return what noise explains of `distances` on average, (N, N)."""
        own = self.noise @ self.known.T.astype(np.float64)
        noises: Floats = own + own.T
        return noises


def _of_label(summary: Summary, label: int) -> Summary:
    """Return the summary with the components of one label only."""
    own = summary.labels == label
    return replace(
        summary, labels=summary.labels[own], counts=summary.counts[own], means=summary.means[own],
        variances=summary.variances[own],
    )  # fmt: skip
