"""What the personalization steps of a method do to one client's tensors.

`methods.personalization` has the settings and the choice of steps; this module has what needs the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from trifed.config.settings import TrainingSettings
from trifed.federation.client_privacy import ClientPrivacy
from trifed.federation.client_update import ClientDataset
from trifed.federation.context import RunContext
from trifed.federation.training.evaluation import example_losses, length_order
from trifed.federation.training.shared_model import SharedModel
from trifed.methods.aggregation import BIAS, HEAD
from trifed.methods.base import Stage, is_share
from trifed.methods.packing import Vector
from trifed.tasks.base import inputs_of

FACTORS = tuple(step / 20 for step in range(20, -1, -1))
"""Factors of the head's weight that `calibrate` tries, from 1 to 0."""
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of the received model that a client tries if it chooses the interpolation, from 1 to 0."""
TOLERANCE = 0.5
"""Standard errors within which a loss counts as no worse than the least."""


class Personalization:
    """The steps by which one client makes the shared result its own."""

    def __init__(
        self, context: RunContext, shared_model: SharedModel, dataset: ClientDataset, training: TrainingSettings,
        privacy: ClientPrivacy, num_labels: int,
    ) -> None:  # fmt: skip
        self.context = context
        self.shared_model = shared_model
        self.dataset = dataset
        self.training = training
        self.privacy = privacy
        self.num_labels = num_labels

    def local_init(self, with_validation: bool = False) -> dict[str, Tensor]:
        """Return the initial tensors derived from the client's labels; empty if the method derives none.

        Args:
            with_validation: Count the labels of the validation examples too.
        """
        make, labels = self.context.method.local_init, self.dataset.train.labels
        if make is None:
            return {}
        if with_validation:
            labels = np.concatenate([labels, self.dataset.valid.labels])
        arrays = make(self.context.options, self.privacy.labels(labels), self.num_labels)
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def start(self, local_init: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that a client starts from: the common ones, and what follows from its own data."""
        return {**self.shared_model.start, **local_init, **self._local_share()}

    @torch.no_grad()
    def _local_share(self) -> dict[str, Tensor]:
        """Return the vector that the share of the local LoRA depends on, by name; see `adapters.dual`."""
        method, data = self.context.method, self.dataset.train
        if method.local_share is None or not len(data):
            return {}
        self.shared_model.model.eval()
        dual: Any = self.shared_model.encoder.base_model
        name, device = next(filter(is_share, self.shared_model.parameters)), self.shared_model.device
        total = torch.zeros_like(self.shared_model.start[name])
        for rows in length_order(data, self.training.eval_batch_size):
            total += dual.unit_features(**inputs_of(data.batch(rows, device))).sum(0).cpu()
        return {name: method.local_share(self.context.options) / len(data) * total}

    def model(
        self, stage: Stage, trained: dict[str, Tensor], download: Vector | None, share: float | None = None
    ) -> dict[str, Tensor]:
        """Return the client's tensors at a stage.

        Args:
            stage: The initial, the trained, the received or the interpolated model; its personal head, if the
                method has one, is added to the common one.
            trained: Tensors after the client's last training.
            download: Values of the last download, (n_values,); None if there was none.
            share: Share of the received model in the interpolated one, if it is known already.
        """
        own = with_personal_head(trained)
        if stage in ("start", "trained") or download is None:
            return own
        received = with_personal_head(self.shared_model.receive(trained, download))
        if stage == "received":
            return received
        return between(own, received, self.share(own, received) if share is None else share)

    def chosen_share(self, stage: Stage, trained: dict[str, Tensor], download: Vector | None) -> float | None:
        """Return the share of the received model if the client chooses it at this stage; arguments as `model`."""
        if stage != "interpolated" or download is None or not self.context.method.chooses_interpolation:
            return None
        received = with_personal_head(self.shared_model.receive(trained, download))
        return self.share(with_personal_head(trained), received)

    def share(self, trained: dict[str, Tensor], received: dict[str, Tensor]) -> float:
        """Return the share of the received model in the interpolated one, 0 to 1.

        If the client chooses it: the largest of `SHARES` whose loss on the n validation examples is within
        `TOLERANCE` standard errors of the least, by the rule of `calibrate`. With fewer than two examples, or
        without a finite loss, it is the method's `interpolation`.
        """
        method, valid = self.context.method, self.dataset.valid
        if not method.chooses_interpolation or len(valid) < 2:
            return method.interpolation
        losses = []
        for share in SHARES:
            self.shared_model.load(between(trained, received, share))
            losses.append(example_losses(self.shared_model.model, valid, self.training))
        return largest_share(np.stack(losses), method.interpolation)

    def calibrated(
        self, tensors: dict[str, Tensor], initial: dict[str, Tensor], features: NDArray[np.float32] | None
    ) -> dict[str, Tensor]:
        """Return the tensors with a label prior that counts validation labels too, and a scaled head.

        Args:
            tensors: The client's model.
            initial: Initial tensors that the training began with. Training needs the prior of the examples that it
                trains on; the model that is used gets the best estimate there is.
            features: The model's features of the validation examples, (n, hidden); None leaves the head unscaled.
        """
        prior = self.local_init(with_validation=True)
        changes = {name: tensors[name] + prior[name] - start for name, start in initial.items() if name in tensors}
        changed = {**tensors, **changes}
        if features is None:
            return changed
        return calibrate(self.shared_model, changed, features, self.dataset.valid.labels)


def with_personal_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a client's tensors with the sum of its two heads as the head; unchanged without a personal head."""
    own = {name: f"personal.{name.removeprefix('head.')}" for name in (HEAD, BIAS)}
    sums = {name: tensors[name] + tensors[other] for name, other in own.items() if other in tensors}
    return {**tensors, **sums} if sums else tensors


def between(trained: dict[str, Tensor], received: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return trained + share · (received - trained), by name."""
    return {name: torch.lerp(tensor, received[name], share) for name, tensor in trained.items()}


def largest_share(losses: NDArray[np.float64], otherwise: float) -> float:
    """Return the first of `SHARES` whose loss is no worse than the least, up to noise.

    Args:
        losses: Loss of each example with each share, (n_shares, n).
        otherwise: The result if no mean loss is finite, or there are fewer than two examples.
    """
    if losses.shape[1] < 2:
        return otherwise
    means = losses.mean(axis=1)
    usable = np.isfinite(means)
    if not usable.any():
        return otherwise
    excess = losses[usable] - losses[np.where(usable, means, np.inf).argmin()]
    tolerated = excess.mean(axis=1) <= TOLERANCE * excess.std(axis=1, ddof=1) / losses.shape[1] ** 0.5
    return float(np.array(SHARES)[usable][tolerated].max())


def calibrate(
    shared_model: SharedModel, tensors: dict[str, Tensor], features: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[str, Tensor]:
    """Return a client's tensors with the head's weight times the factor in [0, 1] that suits its loss.

    The loss is that of n validation examples, by their `features`, (n, hidden), and `labels`, (n,).

    With the log of a prior as bias, the factor says how far the rest of the model is to be believed: with 0 the
    prior alone decides. Otherwise this is temperature scaling (Guo et al., "On Calibration of Modern Neural
    Networks", ICML 2017, arXiv 1706.04599). Few examples say little about the best factor, so the largest one is
    taken whose loss is within `TOLERANCE` standard errors of the least, those of the mean difference between both
    (after the rule of one standard error of Breiman et al., "Classification and Regression Trees", 1984). With
    fewer than two examples nothing changes.
    """
    if len(labels) < 2 or HEAD not in tensors:
        return tensors
    shared_model.load(tensors)
    weight, bias = tensors[HEAD], shared_model.model.get_parameter(BIAS).detach().cpu()
    evidence, targets = torch.from_numpy(features) @ weight.T, torch.from_numpy(labels)
    losses = torch.stack([cross_entropy(s * evidence + bias, targets, reduction="none") for s in FACTORS])
    excess = losses - losses[losses.mean(1).argmin()]
    tolerated = excess.mean(1) <= TOLERANCE * excess.std(1) / len(labels) ** 0.5
    return {**tensors, HEAD: weight * FACTORS[int(tolerated.int().argmax())]}
