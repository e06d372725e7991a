"""The other attacks on one method: labels, members from updates and from summaries, means of summaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trifed.attacks import summaries
from trifed.attacks.guess import guess_labels
from trifed.attacks.inference import labels_from, membership_scores
from trifed.attacks.plan import Plan
from trifed.attacks.scores import estimate, overlap, told_apart
from trifed.attacks.target import Rows, Subset, TargetClient, drawn, target_client
from trifed.federation.training import seeded
from trifed.reports.audit.findings import Attempt, Labels, Means, Membership
from trifed.tasks import Encoded
from trifed.tasks.text_classification import EncodedText

Say = Callable[[str], None]
Floats = NDArray[np.float64]
PICKING = 12
"""Purpose of the generators that pick whose membership is asked about."""
SHOWN = 3


def labels_of(target: TargetClient, plan: Plan) -> list[Labels]:
    """Which labels a batch had, where a method sends its head. All levels of knowledge see the same head."""
    train, found = target.client.train, []
    known = np.concatenate([other.train.labels for other in target.others] or [train.labels[:0]])
    for batch in (b for b in plan.batches if b <= len(train)):
        trials = drawn(plan.seed, len(train), batch, plan.trials)
        truth = [Counter(map(int, train.labels[rows])) for rows in trials]
        guesser = [overlap(true, Counter(guess_labels(known, batch)))[2] for true in truth]
        for sees, look in (("gradient", target.gradient), ("update", target.update)):
            told = [labels_from(look(rows), batch) for rows in trials]
            scores = [overlap(true, Counter(t))[2] for true, t in zip(truth, told, strict=True) if t is not None]
            if scores:
                found.append(
                    Labels(
                        method=target.config.method.name,
                        sees=sees,
                        knows="base",
                        batch=batch,
                        trials=len(scores),
                        f1=estimate(scores),
                        guesser=estimate(guesser),
                    )
                )
    return found


def attacked(target: TargetClient, plan: Plan) -> list[TargetClient]:
    """The clients whose members are looked for: those with most that was not trained on, the victim's run."""
    able = [c for c in target.simulation.datasets if len(c.train) > 1 and len(c.test) > 1]
    able.sort(key=lambda client: -len(client.test))
    return [target_client(target.simulation, client.index, target.round) for client in able[: plan.clients]]


def members_in_updates(targets: list[TargetClient], plan: Plan, say: Say) -> list[Membership]:
    """Who of a client's training and test examples stands behind its upload of a whole round."""
    if not targets:
        return []
    found, name = [], targets[0].config.method.name
    updates = [target.update(np.arange(len(target.client.train))) for target in targets]
    for knows in targets[0].levels():
        say(f"{name}: who is in an update, {knows}")
        scores: list[tuple[Floats, Floats]] = []
        for target, update in zip(targets, updates, strict=True):
            believed = target.believed(knows)
            parts = [_some(data, plan, target) for data in (target.client.train, target.client.test)]
            one, two = (membership_scores(target, believed, update, part) for part in parts)
            scores.append((one, two))
        examples = float(np.mean([min(len(v.client.train), _read(v)) for v in targets]))
        found.append(_membership(name, "update", knows, examples, scores))
    return found


def _read(target: TargetClient) -> int:
    """The most examples that a round reads."""
    settings = target.config.training
    return target.steps(len(target.client.train)) * settings.batch_size


def _some(data: Encoded, plan: Plan, target: TargetClient) -> Subset:
    rng = seeded(plan.seed, PICKING, target.client.index)
    rows: Rows = np.sort(rng.choice(len(data), min(len(data), plan.members), replace=False))
    return Subset(data, rows)


def _membership(
    name: str, source: str, knows: str, examples: float, scores: list[tuple[Floats, Floats]]
) -> Membership:
    """All clients' scores together, each client's in units of its own spread."""
    members, others = [], []
    for one, two in scores:
        both = np.concatenate([one, two])
        spread = both.std() or 1.0
        members.append((one - both.mean()) / spread)
        others.append((two - both.mean()) / spread)
    inside, outside = np.concatenate(members), np.concatenate(others)
    auc, tpr = told_apart(inside, outside)
    return Membership.model_validate(
        {
            "method": name,
            "source": source,
            "sees": "update" if source == "update" else None,
            "knows": knows,
            "examples": examples,
            "members": len(inside),
            "others": len(outside),
            "auc": auc,
            "tpr": tpr,
        }
    )


def in_summaries(targets: list[TargetClient]) -> tuple[list[Membership], list[Means]]:
    """Who stands behind a summary, and whether the example nearest to a mean does."""
    scores, sizes, answers, attempts = [], [], [], []
    for target in targets:
        with target.site_of(target.client) as site:
            found = summaries.seen(target, site)
        if found is None or not len(found.summary.counts):
            continue
        one, two = summaries.membership(found)
        if len(one) and len(two):
            scores.append((one, two))
        sizes += [float(count) for count in found.summary.counts]
        nearest = summaries.nearest(found)
        answers += [float(inside) for _, inside in nearest]
        attempts += [_attempt(target, place, inside) for place, inside in nearest]
    if not scores:
        return [], []
    name, examples = targets[0].config.method.name, float(np.mean(sizes))
    members = [_membership(name, "summary", "base", examples, scores)]
    if not answers:
        return members, []
    shown = [attempt for attempt in attempts if attempt is not None][:SHOWN]
    means = Means(
        method=name,
        examples=examples,
        components=len(answers),
        found=estimate(answers),
        chance=0.5,
        attempts=shown,
    )
    return members, [means]


def _attempt(target: TargetClient, place: int, inside: bool) -> Attempt | None:
    train, test = target.client.train, target.client.test
    if not isinstance(train, EncodedText) or not isinstance(test, EncodedText):
        return None
    decode = target.shared_model.base.processor.decode
    data = train if inside else test
    label = int(data.labels[place])
    behind = [train.ids[row] for row in np.flatnonzero(train.labels == label)[:SHOWN]]
    return Attempt(
        original=[decode(ids, skip_special_tokens=True) for ids in behind],
        found=[decode(data.ids[place], skip_special_tokens=True)],
    )
