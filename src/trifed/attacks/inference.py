"""Inference about the examples of a client: their labels, and whether an update or a summary was made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trifed.attacks.plan import Plan
from trifed.attacks.scores import auc_and_tpr, estimate, likeliest, overlap
from trifed.attacks.target import OBSERVATIONS, Subset, TargetClient, draw_batches, target_client
from trifed.federation.batches import seeded
from trifed.federation.client_update import summary_seeds
from trifed.federation.messages import decode_summary
from trifed.methods.packing import Tensors
from trifed.methods.summaries import projected
from trifed.privacy import unit
from trifed.reports.audit.findings import Attempt, Labels, Means, Membership
from trifed.similarity import Summary
from trifed.similarity.summary import MERGED
from trifed.tasks import Encoded
from trifed.tasks.tokens import EncodedTokens

Floats = NDArray[np.float64]
Features = tuple[Floats, NDArray[np.int64]]
"""Features of n examples in a summary's projection, (n, dim), and the label of each one's components, (n,)."""
HEAD = "head.weight"
PICKING = 12
"""Purpose of the generators that pick the examples whose membership is inferred."""
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
    for size, batches in draw_batches(plan, len(train)).items():
        truths = [Counter(train.labels[rows].tolist()) for rows in batches]
        guess = Counter(likeliest(known, size))
        for observation in OBSERVATIONS:
            inferred = [labels_from(target.observe(observation, rows), size) for rows in batches]
            pairs = [(truth, labels) for truth, labels in zip(truths, inferred, strict=True) if labels is not None]
            if pairs:
                yield Labels(
                    method=target.config.method.name, sees=observation, knows="base", batch=size,
                    trials=len(pairs), f1=estimate([overlap(t, Counter(labels))[2] for t, labels in pairs]),
                    guesser=estimate([overlap(truth, guess)[2] for truth in truths]),
                )  # fmt: skip


def membership_targets(target: TargetClient, plan: Plan) -> list[TargetClient]:
    """Return the clients of the target's run that have the most examples they did not train on."""
    able = [c for c in target.simulation.datasets if len(c.train) > 1 and len(c.test) > 1]
    most = sorted(able, key=lambda client: -len(client.test))[: plan.clients]
    return [target_client(target.simulation, client.index, target.round) for client in most]


def infer_from_updates(
    targets: Sequence[TargetClient], plan: Plan, progress: Callable[[str], None]
) -> Iterator[Membership]:
    """Score training and test examples of each target against its update of a whole round."""
    sizes = [(target, len(target.client.train)) for target in targets]
    updates = [target.update(np.arange(size)) for target, size in sizes]
    read = [min(size, target.steps(size) * target.config.training.batch_size) for target, size in sizes]
    for knowledge in targets[0].knowledge_levels() if targets else []:
        progress(f"{targets[0].config.method.name}: who is in an update, {knowledge}")
        scores = []
        for target, update in zip(targets, updates, strict=True):
            assumed, client = target.assumed_tensors(knowledge), target.client
            parts = [pick_examples(data, plan, client.index) for data in (client.train, client.test)]
            scores.append([membership_scores(target, assumed, update, part) for part in parts])
        yield pool_scores(targets[0], "update", knowledge, float(np.mean(read)), scores)


def pick_examples(data: Encoded, plan: Plan, client: int) -> Subset:
    """Pick up to `plan.members` examples at random."""
    rng = seeded(plan.seed, PICKING, client)
    return Subset(data, np.sort(rng.choice(len(data), min(len(data), plan.members), replace=False)))


def membership_scores(
    target: TargetClient, assumed: dict[str, torch.Tensor], observed: Tensors, data: Encoded
) -> Floats:
    """Return the cosine between each example's own gradient and the client's observed one, (n,).

    The score of a member is higher, because its gradient is a part of the observed one (after Li et al.,
    "Effective passive membership inference attacks in federated learning", 2022, arXiv 2111.08390: gradients of
    examples of a large model are nearly orthogonal).
    """
    shared_model = target.shared_model
    shared_model.load(assumed)
    shared_model.model.eval()
    params = {name: shared_model.parameters[name] for name in observed if np.any(observed[name])}
    flat = np.concatenate([observed[name].ravel() for name in params])
    direction, scores = torch.from_numpy(flat).to(shared_model.device), np.zeros(len(data))
    for row in range(len(data)):
        loss = shared_model.model.loss(data.batch(np.array([row]), shared_model.device))
        parts = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in parts])
        scores[row] = float(torch.cosine_similarity(gradient, direction, dim=0))
    return scores


def pool_scores(
    target: TargetClient, source: str, knowledge: str, examples: float, scores: Sequence[Sequence[Floats]]
) -> Membership:
    """Pool the scores of several clients, each client's standardised, and measure how well they separate members.

    Args:
        target: One of the clients.
        source: "update" or "summary".
        knowledge: What the attacker knows of the adapter.
        examples: How many examples the observation stands for, mean over the clients.
        scores: For each client the scores of members and of other examples, (n,) and (m,).
    """
    standardised = []
    for parts in scores:
        both = np.concatenate(parts)
        standardised.append([(part - both.mean()) / (both.std() or 1.0) for part in parts])
    members, others = (np.concatenate(parts) for parts in zip(*standardised, strict=True))
    auc, tpr = auc_and_tpr(members, others)
    return Membership.model_validate(
        {
            "method": target.config.method.name, "source": source, "knows": knowledge,
            "sees": "update" if source == "update" else None, "examples": examples,
            "members": len(members), "others": len(others), "auc": auc, "tpr": tpr,
        }
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
