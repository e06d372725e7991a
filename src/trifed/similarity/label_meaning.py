"""Agreement of clients on the meaning of their labels, in one domain or in several.

Two clients can use the same labels for the same things in different domains, such as reviews of films and of
phones: every mean of theirs differs, and what separates their labels does not. So each client's means are also
taken relative to their own centre, and these contrasts are compared. Labels that are swapped, or that stand for
something else, have other contrasts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats
from trifed.similarity.summary import Summary
from trifed.similarity.two_sample import LabelMoments

PART = 0.25
"""Part of the two clients' own contrasts, squared, that counts like noise. With it, and so many examples that
noise does not matter, a ratio of 2 is a cosine of 0.5 between contrasts of equal length, and 1 is one of 0.75."""
SIGNIFICANT = 1.64
"""Standard errors by which the cosine of two clients' contrasts has to be above 0: one-sided, 5 %."""


def label_meaning_ratio(summaries: Sequence[Summary]) -> Floats:
    r"""Return how far two clients' labels differ in meaning, (N, N); about 1 or less if they mean the same.

    It is `shared_label_ratio`, which compares means. Where the contrasts between labels agree, it is the ratio of
    the contrasts if that is smaller: the clients then differ by domain, not by meaning. With S the k > 1 labels
    of which both clients have components, and $d_{iy} = m_{iy} - \frac1k Σ_S m_{iy}$:

        $T_{ij} = Σ_S ‖d_{iy} - d_{jy}‖² / (ν_{ij} + ¼ (D_{ij} + D_{ji}))$

    $ν_{ij} = (1 - 1/k) Σ_S (s_{iy}/n_{iy} + s_{jy}/n_{jy})$ is what noise explains of the numerator, and
    $D_{ij} = \max(0, Σ_S ‖d_{iy}‖² - (1 - 1/k) Σ_S s_{iy}/n_{iy})$ the squared length of client i's contrasts
    without noise. Contrasts agree if their cosine is significantly above 0; cosines of unrelated ones have the
    standard error $1/\sqrt{(k - 1) \dim}$.

    Returns:
        Ratios (N, N), symmetric, zero diagonal; NaN and infinity as in `shared_label_ratio`.

    Raises:
        SimilarityError: No summaries, or mixed dimensions.
    """
    moments = LabelMoments.of(summaries)
    distances = moments.distances()
    known = moments.known.astype(np.float64)
    shared = np.maximum(known @ known.T, 1.0)
    factor = 1.0 - 1.0 / shared
    noise = factor * (moments.noise @ known.T)
    centres, lengths = _centres_apart(moments.known, moments.means, shared)
    difference = np.maximum(distances - centres, 0.0)
    own = np.maximum(lengths - noise, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = distances / moments.noises()
        ratio = difference / (noise + noise.T + PART * (own + own.T))
        cosine = 0.5 * (lengths + lengths.T - difference) / np.sqrt(lengths * lengths.T)
        agree = cosine * np.sqrt((shared - 1.0) * moments.means.shape[2]) > SIGNIFICANT
    ratio = np.where(agree, np.fmin(plain, (ratio + ratio.T) / 2), plain)
    np.fill_diagonal(ratio, 0.0)
    return ratio


def _centres_apart(known: npt.NDArray[np.bool_], means: Floats, shared: Floats) -> tuple[Floats, Floats]:
    """Return $‖Σ_S (m_{iy} - m_{jy})‖² / k$ and $Σ_S ‖d_{iy}‖²$, each (N, N); S and k depend on both clients."""
    # Imported late: a site's node imports this file often.
    from scipy.spatial.distance import pdist, squareform

    counts, squares = known.astype(np.float64), (means**2).sum(2)
    centres, own = np.zeros(shared.shape), np.zeros(shared.shape)
    label_sets, group = np.unique(known, axis=0, return_inverse=True)
    for place, labels in enumerate(label_sets):
        theirs = means[:, labels].sum(1)  # (N, dim): the sums over what each client shares with this group
        same, others = np.flatnonzero(group.ravel() == place), np.flatnonzero(group.ravel() != place)
        centres[np.ix_(same, same)] = squareform(pdist(theirs[same], "sqeuclidean")) if len(same) > 1 else 0.0
        own[np.ix_(same, same)] = (theirs[same] ** 2).sum(1)[:, None]
        for client in same if len(others) else ():
            mine = counts[np.ix_(others, labels)] @ means[client, labels]
            centres[client, others] = ((mine - theirs[others]) ** 2).sum(1)
            own[client, others] = (mine**2).sum(1)
    return centres / shared, np.maximum(squares @ counts.T - own / shared, 0.0)
