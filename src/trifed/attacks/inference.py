"""Inference about the examples of a client: their labels, and whether a summary was made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trifed.attacks.membership import pool_scores
from trifed.attacks.plan import Plan
from trifed.attacks.scores import estimate, likeliest, overlap
from trifed.attacks.target import OBSERVATIONS, TargetClient
from trifed.federation.client_update import summary_seeds
from trifed.federation.messages import decode_summary
from trifed.methods.packing import Tensors
from trifed.methods.summaries import projected
from trifed.privacy import unit
from trifed.reports.audit.findings import Attempt, Labels, Means, Membership
from trifed.similarity import Summary
from trifed.similarity.summary import MERGED
from trifed.tasks.tokens import EncodedTokens

Floats = NDArray[np.float64]
Features = tuple[Floats, NDArray[np.int64]]
"""Features of n examples in a summary's projection, (n, dim), and the label of each one's components, (n,)."""
HEAD = "head.weight"
FLOOR = 1e-6
"""Least variance in a likelihood, in units of the features' own."""
SHOWN = 3
"""Summary components, and members of each, that are kept to look at."""


def labels_from(observed: Tensors, batch: int) -> list[int] | None:
    """Return the labels of a batch, with their multiplicity; None if the head is not sent.

    Row k of a softmax head's gradient is Σ_i (p_ik − [y_i = k]) x_i / n. If k occurs m times among features far
    from each other, its square is about m ‖x‖² / n², and otherwise some p_k² of that. If only signs are left, as
    in AdamW's steps, rows of labels that occur point against the others (after Zhao et al., "iDLG", 2020, arXiv
    2001.02610). A label's share of the batch is its share of the product of both.
    """
    if HEAD not in observed or not np.any(observed[HEAD]):
        return None
    rows = observed[HEAD].astype(np.float64)
    squares = (rows**2).sum(1)
    units = rows / np.sqrt(np.maximum(squares, 1e-300))[:, None]
    mean = units.mean(0)
    share = squares * ((1 - units @ mean / max(float(np.linalg.norm(mean)), 1e-300)) / 2)
    if not share.any():  # one row alone is sent, so that it is the mean
        share = squares
    expected = batch * share / share.sum()
    counts = np.floor(expected).astype(int)
    counts[np.argsort(counts - expected, kind="stable")[: batch - counts.sum()]] += 1
    return list(map(int, np.repeat(np.arange(len(counts)), counts)))


def infer_labels(target: TargetClient, plan: Plan) -> Iterator[Labels]:
    """Infer the labels of batches from gradients and updates, where the method sends its head.

    The adapter plays no role in this attack, so one row stands for all levels of knowledge.
    """
    train = target.client.train
    known = [int(label) for other in target.others for label in other.train.labels]
    for size, batches in target.batches(plan).items():
        truths = [Counter(train.labels[rows].tolist()) for rows in batches]
        guess = Counter(likeliest(known, size * target.size))
        for observation in OBSERVATIONS:
            inferred = [labels_from(target.observe(observation, rows), len(rows)) for rows in batches]
            pairs = [(truth, labels) for truth, labels in zip(truths, inferred, strict=True) if labels is not None]
            if pairs:
                yield Labels(
                    method=target.config.method.name, view=target.view, clients=target.size, sees=observation,
                    knows="base", batch=size, trials=len(pairs),
                    f1=estimate([overlap(t, Counter(labels))[2] for t, labels in pairs]),
                    guesser=estimate([overlap(truth, guess)[2] for truth in truths]),
                )  # fmt: skip


def observe_summaries(targets: Sequence[TargetClient]) -> Iterator[tuple[TargetClient, Summary, list[Features]]]:
    """Yield each target with the summary that its own protocol sends, where that has components.

    The features are those of the training examples, which the summary was made of, and of the test examples.
    """
    for target in targets:
        with target.client_side(target.client) as site:
            payload = site.summary()
        dim, client = site.context.summary_dim, target.client
        header = site.context.header("summary", 0, client.index)
        summary = None if payload is None else decode_summary(payload, header, dim)
        if summary is not None and len(summary.counts):
            seeds, features = summary_seeds(target.config.seed, client.index), []
            raw = site.context.options.raw_summary()
            for data in (client.train, client.test):
                found = target.shared_model.base_features(data, target.config.training)
                points = found.astype(np.float64) if raw else projected(found, seeds, dim)
                points = unit(points) if target.config.privacy.summary else points.astype(np.float64)
                features.append((points, np.where(np.isin(data.labels, summary.labels), data.labels, MERGED)))
            yield target, summary, features


def log_likelihoods(summary: Summary, features: Features) -> Floats:
    """Return each example's log-likelihood under the likeliest component of its label, without constants.

    Examples whose label has no component are left out.
    """
    size = FLOOR * float(np.mean(summary.variances)) + 1e-12
    scores = []
    for point, label in zip(*features, strict=True):
        own = np.flatnonzero(summary.labels == label)
        if len(own):
            variances = summary.variances[own].astype(np.float64) + size
            distances = (point - summary.means[own]) ** 2 / variances
            scores.append(float((-0.5 * (distances + np.log(variances)).sum(1)).max()))
    return np.array(scores)


def nearest_examples(summary: Summary, both: Sequence[Features]) -> Iterator[tuple[int, bool]]:
    """Yield for each component the example nearest to its mean, among its members and as many other examples.

    Each is (row, is a member), a row of the members or of the others. Components that lack either are left out.
    """
    for mean, label in zip(summary.means.astype(np.float64), summary.labels, strict=True):
        rows = [np.flatnonzero(labels == label) for _, labels in both]
        count = min(map(len, rows))
        if count:
            points = np.concatenate([points[own[:count]] for (points, _), own in zip(both, rows, strict=True)])
            nearest = int(np.linalg.norm(points - mean, axis=1).argmin())
            yield int(rows[nearest // count][nearest % count]), nearest < count


def infer_from_summaries(targets: Sequence[TargetClient]) -> tuple[list[Membership], list[Means]]:
    """Infer members from summaries, and count how often the example nearest to a mean is a member."""
    observed = list(observe_summaries(targets))
    likelihoods = [[log_likelihoods(summary, part) for part in both] for _, summary, both in observed]
    scores = [parts for parts in likelihoods if all(map(len, parts))]
    if not scores:
        return [], []
    examples = float(np.mean(np.concatenate([summary.counts for _, summary, _ in observed])))
    nearest = [(target, *found) for target, summary, both in observed for found in nearest_examples(summary, both)]
    means = [
        Means(
            method=targets[0].config.method.name, examples=examples, components=len(nearest), chance=0.5,
            found=estimate([is_member for _, _, is_member in nearest]),
            attempts=[attempt for found in nearest for attempt in _attempt(*found)][:SHOWN],
        )
    ] if nearest else []  # fmt: skip
    return [pool_scores(targets[0], "summary", "base", examples, scores)], means


def _attempt(target: TargetClient, row: int, is_member: bool) -> Iterator[Attempt]:
    """Yield the nearest text beside some of the component's members; nothing for examples that are no texts."""
    train, data = target.client.train, target.client.train if is_member else target.client.test
    if isinstance(train, EncodedTokens) and isinstance(data, EncodedTokens):
        decode = target.shared_model.base.processor.decode
        members = np.flatnonzero(train.labels == int(data.labels[row]))[:SHOWN]
        yield Attempt(
            original=[decode(train.ids[member], skip_special_tokens=True) for member in members],
            found=[decode(data.ids[row], skip_special_tokens=True)],
        )
