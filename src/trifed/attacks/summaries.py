"""What a one-time summary says: whether an example stands behind it, and which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifed.attacks.target import TargetClient
from trifed.federation.client import Client
from trifed.federation.client_update import summary_seeds
from trifed.federation.messages import decode_summary
from trifed.methods.summaries import projected
from trifed.privacy import unit
from trifed.similarity import Summary
from trifed.similarity.summary import MERGED

FLOOR = 1e-6
"""Least variance that a likelihood is computed with, in units of the features' own."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """A client's summary as the server has it, and features of examples in its projection, (n, dim).

    `members`: those that it was made of, with `labels` (n,); `others`: of the same client, not among them, with
    `other_labels`.
    """

    summary: Summary
    members: Floats
    labels: NDArray[np.int64]
    others: Floats
    other_labels: NDArray[np.int64]


def seen(target: TargetClient, site: Client) -> Seen | None:
    """What the server has of a client's data, by the client's own protocol; None if the method asks for none."""
    payload, settings = site.summary(), target.config.training
    if payload is None:
        return None
    header = site.context.header("summary", 0, site.dataset.index)
    seeds = summary_seeds(target.config.seed, site.dataset.index)
    parts = []
    for data in (site.dataset.train, site.dataset.test):
        points = projected(target.shared_model.base_features(data, settings), seeds, site.context.summary_dim)
        parts.append(unit(points) if target.config.privacy.summary else points.astype(np.float64))
    return Seen(
        decode_summary(payload, header, site.context.summary_dim), parts[0], site.dataset.train.labels, parts[1],
        site.dataset.test.labels,
    )  # fmt: skip


def component_labels(summary: Summary, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each label, (n,), that of the components that stand for it: its own, or that of merged ones."""
    return np.where(np.isin(labels, summary.labels), labels, MERGED)


def membership(found: Seen) -> tuple[Floats, Floats]:
    """Log-likelihood of members and of others under the nearest component of their label, (n,) each.

    An example whose label has no component is not asked about.
    """
    return (
        _scores(found.summary, found.members, found.labels),
        _scores(found.summary, found.others, found.other_labels),
    )


def _scores(summary: Summary, points: Floats, labels: NDArray[np.int64]) -> Floats:
    each = zip(points, component_labels(summary, labels), strict=True)
    return np.array([score for x, y in each if (score := _likely(summary, x, int(y))) is not None])


def _likely(summary: Summary, point: Floats, label: int) -> float | None:
    own = np.flatnonzero(summary.labels == label)
    if not len(own):
        return None
    size = FLOOR * float(np.mean(summary.variances)) + 1e-12
    variances = summary.variances[own].astype(np.float64) + size
    far = (point - summary.means[own]) ** 2 / variances
    return float((-0.5 * (far + np.log(variances)).sum(1)).max())


def nearest(found: Seen) -> list[tuple[int, bool]]:
    """For each component, of the members with its label and as many others, the one nearest to its mean.

    As (place, is it a member): a place among members or others. A component whose label others lack is left out.
    """
    answers = []
    members, others = (component_labels(found.summary, labels) for labels in (found.labels, found.other_labels))
    for mean, label in zip(found.summary.means.astype(np.float64), found.summary.labels, strict=True):
        one, two = np.flatnonzero(members == label), np.flatnonzero(others == label)
        count = min(len(one), len(two))
        if not count:
            continue
        one, two = one[:count], two[:count]
        far = np.linalg.norm(np.concatenate([found.members[one], found.others[two]]) - mean, axis=1)
        place = int(far.argmin())
        answers.append((int(one[place]), True) if place < count else (int(two[place - count]), False))
    return answers
