"""Membership inference: find the examples of a client that its update, or its one-time summary, was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trifed.attacks.plan import Plan
from trifed.attacks.scores import auc_and_tpr, estimate
from trifed.attacks.target import Subset, TargetClient
from trifed.attacks.target_setup import target_client
from trifed.federation.client_update import summary_seeds
from trifed.federation.messages import decode_summary
from trifed.federation.training import seeded
from trifed.methods.packing import Tensors
from trifed.methods.summaries import projected
from trifed.privacy import unit
from trifed.reports.audit.findings import Attempt, Means, Membership
from trifed.similarity import Summary
from trifed.similarity.summary import MERGED
from trifed.tasks import Encoded
from trifed.tasks.text_classification import EncodedText

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
PICKING = 12
"""Purpose of the generators that pick the examples whose membership is inferred."""
FLOOR = 1e-6
"""Least variance in a likelihood, in units of the features' own."""
SHOWN = 3
"""Summary components, and members of each, that are kept to look at."""


def membership_targets(target: TargetClient, plan: Plan) -> list[TargetClient]:
    """Return the clients of the target's run that have the most examples they did not train on."""
    able = [c for c in target.simulation.datasets if len(c.train) > 1 and len(c.test) > 1]
    able.sort(key=lambda client: -len(client.test))
    return [target_client(target.simulation, client.index, target.round) for client in able[: plan.clients]]


def infer_from_updates(
    targets: Sequence[TargetClient], plan: Plan, progress: Callable[[str], None]
) -> list[Membership]:
    """Score training and test examples of each target against its update of a whole round."""
    results = []
    updates = [target.update(np.arange(len(target.client.train))) for target in targets]
    for knowledge in targets[0].knowledge_levels() if targets else []:
        progress(f"{targets[0].config.method.name}: who is in an update, {knowledge}")
        scores, examples = [], []
        for target, update in zip(targets, updates, strict=True):
            assumed, client = target.assumed_tensors(knowledge), target.client
            parts = (pick_examples(data, plan, client.index) for data in (client.train, client.test))
            members, others = (membership_scores(target, assumed, update, part) for part in parts)
            scores.append((members, others))
            read = target.steps(len(client.train)) * target.config.training.batch_size
            examples.append(min(len(client.train), read))
        results.append(pool_scores(targets[0], "update", knowledge, float(np.mean(examples)), scores))
    return results


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
    names = [name for name in observed if np.any(observed[name])]
    params = [shared_model.parameters[name] for name in names]
    direction = torch.from_numpy(np.concatenate([observed[name].ravel() for name in names]))
    direction = direction.to(shared_model.device)
    scores = np.zeros(len(data))
    for row in range(len(data)):
        loss = shared_model.model.loss(data.batch(np.array([row]), shared_model.device))
        parts = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
        gradient = torch.cat([part.flatten() for part in parts])
        scores[row] = float(torch.cosine_similarity(gradient, direction, dim=0))
    return scores


def pool_scores(
    target: TargetClient, source: str, knowledge: str, examples: float, scores: Sequence[tuple[Floats, Floats]]
) -> Membership:
    """Pool the scores of several clients, each client's standardised, and measure how well they separate members.

    Args:
        target: One of the clients.
        source: "update" or "summary".
        knowledge: What the attacker knows of the adapter.
        examples: How many examples the observation stands for, mean over the clients.
        scores: For each client the scores of members and of other examples, (n,) and (m,).
    """
    members, others = [], []
    for inside, outside in scores:
        both = np.concatenate([inside, outside])
        spread = both.std() or 1.0
        members.append((inside - both.mean()) / spread)
        others.append((outside - both.mean()) / spread)
    inside, outside = np.concatenate(members), np.concatenate(others)
    auc, tpr = auc_and_tpr(inside, outside)
    return Membership.model_validate(
        {
            "method": target.config.method.name, "source": source, "knows": knowledge,
            "sees": "update" if source == "update" else None, "examples": examples,
            "members": len(inside), "others": len(outside), "auc": auc, "tpr": tpr,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class ObservedSummary:
    """A client's summary as the server has it, and features of the client's examples in the same projection.

    Attributes:
        summary: Components of the client's data, as decoded.
        members: Features of the training examples, which the summary was made of, (n, dim).
        member_labels: For each of them the label of the components that can stand for it, (n,).
        others: Features of the test examples, (m, dim).
        other_labels: For each of them the label of the components that could stand for it, (m,).
    """

    summary: Summary
    members: Floats
    member_labels: Labels
    others: Floats
    other_labels: Labels


def observe_summary(target: TargetClient) -> ObservedSummary | None:
    """Let the client's own protocol send its summary; None if the method asks for none or it has no components."""
    with target.client_side(target.client) as site:
        payload = site.summary()
    if payload is None:
        return None
    dim, client = site.context.summary_dim, target.client
    summary = decode_summary(payload, site.context.header("summary", 0, client.index), dim)
    if not len(summary.counts):
        return None
    seeds, groups = summary_seeds(target.config.seed, client.index), []
    for data in (client.train, client.test):
        points = projected(target.shared_model.base_features(data, target.config.training), seeds, dim)
        points = unit(points) if target.config.privacy.summary else points.astype(np.float64)
        groups += [points, np.where(np.isin(data.labels, summary.labels), data.labels, MERGED)]
    return ObservedSummary(summary, *groups)


def log_likelihoods(summary: Summary, points: Floats, labels: Labels) -> Floats:
    """Return each point's log-likelihood under the likeliest component of its label, without constants.

    Points (n, dim) whose label has no component are left out.
    """
    size = FLOOR * float(np.mean(summary.variances)) + 1e-12
    scores = []
    for point, label in zip(points, labels, strict=True):
        own = np.flatnonzero(summary.labels == label)
        if len(own):
            variances = summary.variances[own].astype(np.float64) + size
            distances = (point - summary.means[own]) ** 2 / variances
            scores.append(float((-0.5 * (distances + np.log(variances)).sum(1)).max()))
    return np.array(scores)


def nearest_examples(observed: ObservedSummary) -> Iterator[tuple[int, bool]]:
    """Yield for each component the example nearest to its mean, among its members and as many other examples.

    Each is (row, is a member), a row of the members or of the others. Components that lack either are left out.
    """
    for mean, label in zip(observed.summary.means.astype(np.float64), observed.summary.labels, strict=True):
        members, others = (
            np.flatnonzero(labels == label) for labels in (observed.member_labels, observed.other_labels)
        )
        count = min(len(members), len(others))
        if count:
            rows = np.concatenate([members[:count], others[:count]])
            points = np.concatenate([observed.members[members[:count]], observed.others[others[:count]]])
            place = int(np.linalg.norm(points - mean, axis=1).argmin())
            yield int(rows[place]), place < count


def infer_from_summaries(targets: Sequence[TargetClient]) -> tuple[list[Membership], list[Means]]:
    """Infer members from summaries, and count how often the example nearest to a mean is a member."""
    scores, hits = [], []
    sizes: list[float] = []
    attempts: list[Attempt] = []
    for target in targets:
        observed = observe_summary(target)
        if observed is None:
            continue
        members = log_likelihoods(observed.summary, observed.members, observed.member_labels)
        others = log_likelihoods(observed.summary, observed.others, observed.other_labels)
        if len(members) and len(others):
            scores.append((members, others))
        sizes.extend(map(float, observed.summary.counts))
        for row, is_member in nearest_examples(observed):
            hits.append(float(is_member))
            attempts.extend(_attempt(target, row, is_member))
    if not scores:
        return [], []
    examples = float(np.mean(sizes))
    means = [
        Means(
            method=targets[0].config.method.name, examples=examples, components=len(hits), found=estimate(hits),
            chance=0.5, attempts=attempts[:SHOWN],
        )
    ] if hits else []  # fmt: skip
    return [pool_scores(targets[0], "summary", "base", examples, scores)], means


def _attempt(target: TargetClient, row: int, is_member: bool) -> Iterator[Attempt]:
    """Show the nearest text beside some of the component's members."""
    train, data = target.client.train, target.client.train if is_member else target.client.test
    if isinstance(train, EncodedText) and isinstance(data, EncodedText):
        decode = target.shared_model.base.processor.decode
        members = np.flatnonzero(train.labels == int(data.labels[row]))[:SHOWN]
        yield Attempt(
            original=[decode(train.ids[member], skip_special_tokens=True) for member in members],
            found=[decode(data.ids[row], skip_special_tokens=True)],
        )
