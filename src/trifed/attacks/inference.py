"""What an upload says without giving an example back: which labels a batch had, and who was in it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from trifed.attacks.target import TargetClient
from trifed.methods.packing import Tensors
from trifed.tasks import Encoded

HEAD = "head.weight"
Floats = NDArray[np.float64]


def labels_from(observed: Tensors, batch: int) -> list[int] | None:
    """The labels of a batch, with their multiplicity, from the gradient of the head; None if it is not sent.

    Row k of a softmax head's gradient is Σ_i (p_ik − [y_i = k]) x_i / n. Where k occurs m times among features far
    from each other its square is about m ‖x‖² / n², else some p_k² of that; and where signs alone are left, as of
    AdamW's steps, rows of labels that occur go against the others (after Zhao et al., "iDLG", 2020, arXiv
    2001.02610). A label's share of the batch is its share of both together.
    """
    if HEAD not in observed or not np.any(observed[HEAD]):
        return None
    rows = observed[HEAD].astype(np.float64)
    squares = (rows**2).sum(1)
    units = rows / np.sqrt(np.maximum(squares, 1e-300))[:, None]
    most = units.mean(0)
    against = (1 - units @ most / max(float(np.linalg.norm(most)), 1e-300)) / 2
    share = squares * against
    wanted = batch * share / share.sum()
    counts = np.floor(wanted).astype(int)
    for label in np.argsort(counts - wanted, kind="stable")[: batch - counts.sum()]:
        counts[label] += 1
    return [int(label) for label in np.repeat(np.arange(len(counts)), counts)]


def membership_scores(
    target: TargetClient, believed: dict[str, torch.Tensor], observed: Tensors, data: Encoded
) -> Floats:
    """For each example the cosine between its own gradient and what was observed of its client, (n,).

    The score of a member is higher, for its gradient is a part of what was sent (after Li et al., "Effective
    passive membership inference attacks in federated learning", 2022, arXiv 2111.08390: gradients of examples of a
    large model are nearly orthogonal).
    """
    shared_model = target.shared_model
    shared_model.load(believed)
    shared_model.model.eval()
    names = [name for name in observed if np.any(observed[name])]
    observed_vector = torch.from_numpy(np.concatenate([observed[name].ravel() for name in names])).to(
        shared_model.device
    )
    scores = np.zeros(len(data))
    for row in range(len(data)):
        loss = shared_model.model.loss(data.batch(np.array([row]), shared_model.device))
        parts = torch.autograd.grad(loss, [shared_model.parameters[name] for name in names], allow_unused=True)
        shapes = [observed[name].size for name in names]
        own = [
            observed_vector.new_zeros(n) if part is None else part.flatten()
            for part, n in zip(parts, shapes, strict=True)
        ]
        scores[row] = float(torch.cosine_similarity(torch.cat(own), observed_vector, dim=0))
    return scores
