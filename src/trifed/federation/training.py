"""Local training and evaluation of a model, independent of methods and clients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trifed.config.settings import TrainingSettings
from trifed.federation.device_placement import autocast, choose_precision
from trifed.methods.base import Proximal
from trifed.tasks.base import Encoded, TaskModel

BUCKET = 16
"""Batches whose examples are sorted by length together, which saves padding and keeps the order nearly random."""

SEEDS = 2**62
"""Upper bound of the seeds drawn for torch's generator."""

Moments = dict[str, Tensor]
"""AdamW's state, flat: `step/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of local training.

    Attributes:
        loss: Mean over the steps, in nats.
        steps: Number of optimiser steps.
        moments: AdamW's state at the end.
    """

    loss: float
    steps: int
    moments: Moments


Gradient = Callable[[TaskModel, Mapping[str, nn.Parameter], Encoded, torch.dtype], Tensor]
"""Model, trained parameters, data, precision → one step's loss, detached; sets the parameters' gradients."""


class ProximalTerm:
    """The proximal term of one round, a gradient towards anchors.

    Attributes:
        anchors: Tensors by name, initially copies of the parameters; their final values after the round.
    """

    def __init__(self, term: Proximal, params: Mapping[str, nn.Parameter]) -> None:
        self.term = term
        self.params = list(params.values())
        self.anchors = {name: param.detach().clone() for name, param in params.items()}

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add ∇ ½ λ ‖θ − anchor‖² = λ (θ − anchor) to the parameters' gradients."""
        for param, anchor in zip(self.params, self.anchors.values(), strict=True):
            if param.grad is not None:
                param.grad.add_(param - anchor, alpha=self.term.strength)

    @torch.no_grad()
    def move(self, step: int, steps: int) -> None:
        """Set anchor ← anchor + share · (θ − anchor) if it moves after step `step` (from 1) of `steps`."""
        if self.term.moves and (step % self.term.every == 0 or step == steps):
            for param, anchor in zip(self.params, self.anchors.values(), strict=True):
                anchor.add_(param - anchor, alpha=self.term.share)


@dataclass(frozen=True)
class Scores:
    """The scores of n examples; NaN without any.

    Attributes:
        loss: Mean over all predictions, in nats.
        accuracy: Mean of `right`, in [0, 1].
        examples: Number of examples, n.
        right: Share of each example's predictions that are correct, (n,).
        predictions: Predicted classes, (n,), or (0,) for a task without classes.
    """

    loss: float
    accuracy: float
    examples: int
    right: NDArray[np.float64]
    predictions: NDArray[np.int64]


def seeded(*parts: int) -> np.random.Generator:
    """Return an independent generator for each sequence of (run seed, purpose, round, client, …)."""
    return np.random.default_rng(np.random.SeedSequence(parts))


def training_batches(
    lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return one epoch's batches: every row once, rows of similar length together, batches in random order."""
    order = rng.permutation(len(lengths))
    span = batch_size * BUCKET
    batches = []
    for first in range(0, len(order), span):
        bucket = order[first : first + span]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += _chunks(bucket, batch_size)
    return [batches[place] for place in rng.permutation(len(batches))]


def round_batches(
    lengths: NDArray[np.int64], settings: TrainingSettings, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of every step that `train_locally` takes in a round with the same generator."""
    rng.integers(SEEDS)  # skip dropout's seed, which train_locally draws first
    yield from _steps(lengths, settings, rng)


def _steps(
    lengths: NDArray[np.int64], settings: TrainingSettings, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    epochs = iter(lambda: training_batches(lengths, settings.batch_size, rng), [])  # ends if there are no rows
    return islice(chain.from_iterable(epochs), steps_per_round(len(lengths), settings))


def steps_per_round(examples: int, settings: TrainingSettings) -> int:
    """Return the number of optimiser steps in one round for a client with that many training examples."""
    if settings.steps is not None:
        return settings.steps if examples else 0
    return settings.epochs * math.ceil(examples / settings.batch_size)


def learning_rate(step: int, total: int, settings: TrainingSettings) -> float:
    """Return the learning rate at step `step` (from 0) of a client's `total` steps in the whole run."""
    warm = math.ceil(settings.warmup * total)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (total - step) / max(1, total - warm)


def train_locally(
    model: TaskModel,
    named: Mapping[str, nn.Parameter],
    data: Encoded,
    settings: TrainingSettings,
    *,
    rng: np.random.Generator,
    steps_before: int,
    steps_in_all: int,
    moments: Moments | None,
    proximal_term: ProximalTerm | None = None,
    dp_step: Gradient | None = None,
) -> TrainingResult:
    """Train some of the model's parameters in place for one round.

    Args:
        model: The model.
        named: The parameters to train, by name.
        data: The client's training examples.
        settings: The training settings.
        rng: Generator of the batches and of dropout's seed.
        steps_before: The client's steps in earlier rounds, for the learning rate schedule.
        steps_in_all: The client's steps in the whole run, for the learning rate schedule.
        moments: AdamW's state from an earlier round; None for a new state.
        proximal_term: Proximal term to add to the gradients, if any.
        dp_step: Chooses each step's examples and computes its private gradient. The number of steps is then
            `settings.steps`, for any number of examples.
    """
    device, precision = _device_and_precision(model, settings)
    optimizer = torch.optim.AdamW(
        named.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    if moments:
        _restore_moments(optimizer, named, moments)
    losses: list[Tensor] = []
    steps = settings.steps if dp_step and settings.steps else steps_per_round(len(data), settings)
    batches = _steps(data.lengths, settings, rng)
    model.train()
    # Dropout draws from torch's global generator, which is forked so that a round neither uses nor changes it.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Of all generators at once only if the device has another one than the CPU's: that takes a millisecond.
        (torch.default_generator if device.type == "cpu" else torch).manual_seed(int(rng.integers(SEEDS)))
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(steps_before + step, steps_in_all, settings)
            if dp_step:
                losses.append(dp_step(model, named, data, precision))
            else:
                rows = next(batches)
                losses.append(_backward(model, data, _chunks(rows, settings.micro_batch or len(rows)), precision))
            if proximal_term:
                proximal_term.add_gradient()
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(named.values(), settings.clip_norm)
            optimizer.step()
            if proximal_term:
                proximal_term.move(step + 1, steps)
            optimizer.zero_grad(set_to_none=True)
    return TrainingResult(
        float(torch.stack(losses).mean()) if losses else math.nan, steps, _copy_moments(optimizer, named)
    )


def _device_and_precision(model: TaskModel, settings: TrainingSettings) -> tuple[torch.device, torch.dtype]:
    device = next(model.parameters()).device
    return device, choose_precision(settings, device)


def _chunks(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Split rows into consecutive parts of `size`; the last one may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _backward(model: TaskModel, data: Encoded, parts: list[NDArray[np.int64]], precision: torch.dtype) -> Tensor:
    """Add the gradient of the mean loss over all predictions of all parts, and return that loss, detached.

    Each part is weighted by its number of predictions, so that the result does not depend on the parts.
    """
    device = next(model.parameters()).device
    batches = [data.batch(rows, device) for rows in parts]
    counts = [model.predictions(batch) for batch in batches]
    total = torch.zeros((), device=device)
    for batch, count in zip(batches, counts, strict=True):
        with autocast(device, precision):
            loss = model.loss(batch)
        share = count / max(1, sum(counts))
        torch.autograd.backward(loss * share)
        total = total + loss.detach() * share
    return total


def _copy_moments(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> Moments:
    # On the CPU, because many clients may share one model on a GPU.
    return {
        f"{kind}/{name}": tensor.detach().to("cpu", copy=True)
        for name, param in named.items()
        for kind, tensor in optimizer.state[param].items()
    }


def _restore_moments(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], moments: Moments
) -> None:
    for key, tensor in moments.items():
        kind, name = key.split("/", 1)
        optimizer.state[named[name]][kind] = tensor.to(named[name].device, copy=True)


def mean_gradient(
    model: TaskModel, weights: Mapping[str, nn.Parameter], data: Encoded, settings: TrainingSettings
) -> dict[str, NDArray[np.float32]]:
    """Return the gradient of the mean training loss for `weights`, frozen or not, without dropout."""
    device, precision = _device_and_precision(model, settings)
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    trainable = {name: weight.requires_grad for name, weight in weights.items()}
    model.eval()
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for rows in length_order(data, settings.batch_size):
            with autocast(device, precision):
                loss = model.loss(data.batch(rows, device))
            for name, part in zip(total, torch.autograd.grad(loss, list(weights.values())), strict=True):
                total[name].add_(part, alpha=len(rows) / len(data))
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(trainable[name])
    return {name: values.cpu().numpy() for name, values in total.items()}


@torch.no_grad()
def evaluate(model: TaskModel, data: Encoded, settings: TrainingSettings) -> Scores:
    """Return the model's loss and accuracy, without dropout, in order of length to save padding."""
    right, predictions = np.zeros(len(data)), np.zeros(len(data), np.int64)
    if not len(data):
        return Scores(math.nan, math.nan, 0, right, predictions)
    device, precision = _device_and_precision(model, settings)
    total, count = 0.0, 0
    model.eval()
    batches = (
        compared_together(data, model.compared) if model.compared else length_order(data, settings.eval_batch_size)
    )
    for rows in batches:
        with autocast(device, precision):
            scores = model.score(data.batch(rows, device))
        total, count = total + float(scores.loss), count + scores.count
        right[rows] = scores.right.double().cpu().numpy()
        if len(scores.predictions):
            predictions[rows] = scores.predictions.cpu().numpy()
        else:
            predictions = predictions[:0]
    return Scores(total / count if count else math.nan, float(right.mean()), len(data), right, predictions)


@torch.no_grad()
def embed(model: TaskModel, data: Encoded, settings: TrainingSettings) -> NDArray[np.float32]:
    """Return the model's pooled features, (n, hidden), float32."""
    device, precision = _device_and_precision(model, settings)
    features = np.zeros((len(data), model.hidden), np.float32)
    model.eval()
    for rows in length_order(data, settings.eval_batch_size):
        with autocast(device, precision):
            features[rows] = model.features(data.batch(rows, device)).cpu().numpy()
    return features


def compared_together(data: Encoded, size: int) -> list[NDArray[np.int64]]:
    """Split all rows, in order, into groups of nearly equal sizes of at most `size`."""
    return np.array_split(np.arange(len(data)), math.ceil(len(data) / size))


def length_order(data: Encoded, batch_size: int) -> list[NDArray[np.int64]]:
    """Return all rows in batches, sorted by length."""
    return _chunks(np.argsort(data.lengths, kind="stable"), batch_size)
