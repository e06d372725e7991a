"""Agreement of clients on the meaning of their labels, from the contrasts between labels.

Two clients can use the same labels for the same things in different domains, such as reviews of films and of
phones: every mean of theirs differs, and what separates their labels does not. So each client's means are taken
relative to their own centre, and only these contrasts are compared. Labels that are swapped, or that stand for
something else, have other contrasts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trifed.similarity.checks import Floats
from trifed.similarity.summary import Summary
from trifed.similarity.two_sample import LabelMoments, shared_label_ratio

PART = 0.25
"""Part of the two clients' own contrasts, squared, that counts like noise: with it, and far more examples than
noise matters for, a ratio of 2 is a cosine of 0.5 between contrasts of equal length, 4 is 0 and 8 is -1."""


def label_contrast_ratio(summaries: Sequence[Summary]) -> Floats:
    r"""Return how much two clients' contrasts between labels differ, (N, N), relative to what is no disagreement.

    With S the k labels of which both clients have components, $d_{iy} = m_{iy} - \frac1k Σ_S m_{iy}$:

        $T_{ij} = Σ_S ‖d_{iy} - d_{jy}‖² / (ν_{ij} + ¼ (D_{ij} + D_{ji}))$

    $ν_{ij} = (1 - 1/k) Σ_S (s_{iy}/n_{iy} + s_{jy}/n_{jy})$ is what noise explains of the numerator, and
    $D_{ij} = \max(0, Σ_S ‖d_{iy}‖² - (1 - 1/k) Σ_S s_{iy}/n_{iy})$ the squared length of client i's contrasts
    without noise. The ratio is about 1 or less if the labels mean the same, whatever the domains; about 4 for
    unrelated and 8 for swapped labels if the examples suffice to see it, and about 1 if they do not.

    With a single shared label there is no contrast: the ratio is that of `shared_label_ratio`, which takes a
    shift of domain for another meaning.

    Returns:
        Ratios (N, N), symmetric, zero diagonal; NaN if two clients share no such label, or have equal examples of
        all; infinity if their contrasts differ where nothing varies.

    Raises:
        SimilarityError: No summaries, or mixed dimensions.
    """
    moments = LabelMoments.of(summaries)
    known, means = moments.known, moments.means
    shared = np.maximum(known.astype(np.float64) @ known.T, 1.0)
    factor = 1.0 - 1.0 / shared
    noise = moments.noise @ known.T.astype(np.float64)
    centres, lengths = _centres_apart(known, means, shared)
    difference = np.maximum(moments.distances() - centres, 0.0)
    own = np.maximum(lengths - factor * noise, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Floats = difference / (factor * (noise + noise.T) + PART * (own + own.T))
    ratio = np.where(shared > 1, (ratio + ratio.T) / 2, shared_label_ratio(summaries))
    np.fill_diagonal(ratio, 0.0)
    return ratio


def _centres_apart(known: npt.NDArray[np.bool_], means: Floats, shared: Floats) -> tuple[Floats, Floats]:
    """Return $‖Σ_S (m_{iy} - m_{jy})‖² / k$ and $Σ_S ‖d_{iy}‖²$, each (N, N); S and k depend on both clients."""
    size = len(known)
    counts, squares = known.astype(np.float64), (means**2).sum(2)
    centres, lengths = np.zeros((size, size)), squares @ counts.T
    label_sets, group = np.unique(known, axis=0, return_inverse=True)
    for place, labels in enumerate(label_sets):
        theirs = means[:, labels].sum(1)  # (N, dim): the sums over what each client shares with this group
        for client in np.flatnonzero(group.ravel() == place):
            mine = counts[:, labels] @ means[client, labels]
            centres[client] = ((mine - theirs) ** 2).sum(1) / shared[client]
            lengths[client] -= (mine**2).sum(1) / shared[client]
    return centres, lengths
