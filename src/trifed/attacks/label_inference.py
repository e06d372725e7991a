"""Label inference: which labels a batch had, from the gradient of the classification head."""

from __future__ import annotations

from collections import Counter

import numpy as np

from trifed.attacks.plan import Plan
from trifed.attacks.scores import estimate, likeliest, overlap
from trifed.attacks.target import OBSERVATIONS, TargetClient, draw_batches
from trifed.methods.packing import Tensors
from trifed.reports.audit.findings import Labels

HEAD = "head.weight"


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
    return [int(label) for label in np.repeat(np.arange(len(counts)), counts)]


def infer_labels(target: TargetClient, plan: Plan) -> list[Labels]:
    """Infer the labels of batches from gradients and updates, where the method sends its head.

    The adapter plays no role in this attack, so one row stands for all levels of knowledge.
    """
    train, results = target.client.train, []
    known = [int(label) for other in target.others for label in other.train.labels]
    for size in (size for size in plan.batches if size <= len(train)):
        batches = draw_batches(plan.seed, len(train), size, plan.trials)
        truths = [Counter(map(int, train.labels[rows])) for rows in batches]
        guess = Counter(likeliest(known, size))
        for observation in OBSERVATIONS:
            inferred = [labels_from(target.observe(observation, rows), size) for rows in batches]
            pairs = [(truth, labels) for truth, labels in zip(truths, inferred, strict=True) if labels is not None]
            if pairs:
                results.append(
                    Labels(
                        method=target.config.method.name, sees=observation, knows="base", batch=size,
                        trials=len(pairs), f1=estimate([overlap(t, Counter(labels))[2] for t, labels in pairs]),
                        guesser=estimate([overlap(truth, guess)[2] for truth in truths]),
                    )
                )  # fmt: skip
    return results
