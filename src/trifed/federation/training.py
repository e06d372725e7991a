"""Local training and evaluation of whatever model stands on the bench. Knows no method and no client."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trifed.common.errors import RunError
from trifed.config.settings import ALL_GPUS, TrainingSettings
from trifed.methods.base import Proximal
from trifed.tasks.base import Encoded, TaskModel

BUCKET = 16
"""Batches whose examples are sorted by length together: less padding, and the order stays random enough."""

SEEDS = 2**62
"""Seeds of torch's generator are drawn below this."""

Moments = dict[str, Tensor]
"""AdamW's state, flat: `step/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`."""


@dataclass(frozen=True)
class Trained:
    """What a stretch of local training reports. `loss`: mean over its steps, nats; `steps`: optimiser steps."""

    loss: float
    steps: int
    moments: Moments


Gradient = Callable[[TaskModel, Mapping[str, nn.Parameter], Encoded, torch.dtype], Tensor]
"""Model, what trains, data, precision → one step's loss, detached; what trains has its gradient then."""


class ProximalTerm:
    """The proximal term of one round: a gradient towards anchors, which start at the parameters as they are.

    `anchors`: by name, and where they are after the round.
    """

    def __init__(self, term: Proximal, params: Mapping[str, nn.Parameter]) -> None:
        self.term = term
        self.params = list(params.values())
        self.anchors = {name: param.detach().clone() for name, param in params.items()}

    @torch.no_grad()
    def add_gradient(self) -> None:
        """∇ ½ λ ‖θ − anchor‖² = λ (θ − anchor)."""
        for param, anchor in zip(self.params, self.anchors.values(), strict=True):
            if param.grad is not None:
                param.grad.add_(param - anchor, alpha=self.term.strength)

    @torch.no_grad()
    def move(self, step: int, wanted: int) -> None:
        """After optimiser step `step` of `wanted`, from 1: anchor ← anchor + share · (θ − anchor)."""
        if self.term.moves and (step % self.term.every == 0 or step == wanted):
            for param, anchor in zip(self.params, self.anchors.values(), strict=True):
                anchor.add_(param - anchor, alpha=self.term.share)


@dataclass(frozen=True)
class Scores:
    """How well n examples are predicted; NaN without any.

    `loss`: mean over all that is predicted, nats; `accuracy`: mean over examples of the share that is right, in
    [0, 1], (n,) of them in `right`; `predictions`: classes, (n,), or (0,) where the task has none.
    """

    loss: float
    accuracy: float
    examples: int
    right: NDArray[np.float64]
    predictions: NDArray[np.int64]


def seeded(*parts: int) -> np.random.Generator:
    """A generator of its own for every (run seed, purpose, round, client, …)."""
    return np.random.default_rng(np.random.SeedSequence(parts))


def choose_device(settings: TrainingSettings) -> torch.device:
    """The device asked for; 'auto' is CUDA where there is one, and of all GPUs it is the first.

    Raises:
        RunError: this machine has no such device.
    """
    if settings.device != "auto":
        device = torch.device("cuda:0" if settings.device == ALL_GPUS else settings.device)
        count = torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= count:
            raise RunError(
                f"training.device: got '{settings.device}', but PyTorch sees {count} CUDA devices here; "
                f"expected 'cpu' or 'auto'{', or cuda:0' if count else ''}"
            )
        return device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(settings: TrainingSettings, device: torch.device) -> torch.dtype:
    """bfloat16 or float32 for autocast; 'auto' takes bfloat16 where the hardware multiplies it."""
    if settings.precision != "auto":
        return torch.bfloat16 if settings.precision == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16() else torch.float32


def _has_bf16() -> bool:
    # oneDNN also emulates bfloat16 on processors without it, which is slower than float32.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Mixed precision for a forward pass; does nothing for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)


def training_batches(
    lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """One epoch: every row once, in random order, neighbours in length together, batches shuffled."""
    order = rng.permutation(len(lengths))
    span = batch_size * BUCKET
    batches = []
    for first in range(0, len(order), span):
        bucket = order[first : first + span]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[start : start + batch_size] for start in range(0, len(bucket), batch_size)]
    return [batches[place] for place in rng.permutation(len(batches))]


def rows_of_round(
    lengths: NDArray[np.int64], settings: TrainingSettings, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """The rows of every optimiser step of a round that `train_locally` takes with the same generator."""
    rng.integers(SEEDS)  # dropout's seed, which is drawn before them
    yield from _steps(lengths, settings, rng)


def _steps(
    lengths: NDArray[np.int64], settings: TrainingSettings, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    epochs = iter(lambda: training_batches(lengths, settings.batch_size, rng), [])  # ends where there are no rows
    return islice(chain.from_iterable(epochs), steps_a_round(len(lengths), settings))


def steps_a_round(examples: int, settings: TrainingSettings) -> int:
    """Optimiser steps that a client with that many training examples takes in one round."""
    if settings.steps is not None:
        return settings.steps if examples else 0
    return settings.epochs * math.ceil(examples / settings.batch_size)


def learning_rate(step: int, total: int, settings: TrainingSettings) -> float:
    """Rate at optimiser step `step` (from 0) of a client's `total` steps in the whole run."""
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
    privately: Gradient | None = None,
) -> Trained:
    """Train the model's parameters `named`, in place, for one round.

    `steps_before` and `steps_in_all` place the round in the run's learning rate schedule. `moments` of an
    earlier round are taken up; None starts AdamW afresh. `pull` adds a proximal term. `privately` chooses each
    step's examples and makes its gradient; steps are `settings.steps` then, however many examples there are.
    """
    device, precision = (
        next(model.parameters()).device,
        choose_precision(settings, next(model.parameters()).device),
    )
    optimizer = torch.optim.AdamW(
        named.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    if moments:
        _restore_moments(optimizer, named, moments)
    losses: list[Tensor] = []
    wanted = settings.steps if privately and settings.steps else steps_a_round(len(data), settings)
    batches = _steps(data.lengths, settings, rng)
    model.train()
    # Dropout draws from torch's global generator: fork it, so that a round neither sees nor moves it.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(rng.integers(SEEDS)))
        for step in range(wanted):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(steps_before + step, steps_in_all, settings)
            if privately:
                losses.append(privately(model, named, data, precision))
            else:
                losses.append(_backward(model, data, _parts(next(batches), settings), precision))
            if proximal_term:
                proximal_term.add_gradient()
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(named.values(), settings.clip_norm)
            optimizer.step()
            if proximal_term:
                proximal_term.move(step + 1, wanted)
            optimizer.zero_grad(set_to_none=True)
    mean = float(torch.stack(losses).mean()) if losses else math.nan
    return Trained(mean, wanted, _copy_moments(optimizer, named))


def _parts(rows: NDArray[np.int64], settings: TrainingSettings) -> list[NDArray[np.int64]]:
    """A step's examples as they are computed together."""
    size = settings.micro_batch or len(rows)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _backward(model: TaskModel, data: Encoded, parts: list[NDArray[np.int64]], precision: torch.dtype) -> Tensor:
    """Add the gradient of the mean loss over all predictions of all parts; returns that loss, detached.

    Each part counts by its predictions, so that it does not matter how a step is cut.
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
    # On the CPU: beside one model on a GPU there may be many clients.
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
    """The gradient of the mean training loss with respect to `weights`, frozen or not, without dropout."""
    device = next(model.parameters()).device
    precision = choose_precision(settings, device)
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    asking = {name: weight.requires_grad for name, weight in weights.items()}
    model.eval()
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for rows in length_order(data, settings.batch_size):
            with autocast(device, precision):
                loss = model.loss(data.batch(rows, device))
            parts = torch.autograd.grad(loss, list(weights.values()))
            for name, part in zip(total, parts, strict=True):
                total[name].add_(part, alpha=len(rows) / len(data))
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(asking[name])
    return {name: values.cpu().numpy() for name, values in total.items()}


@torch.no_grad()
def evaluate(model: TaskModel, data: Encoded, settings: TrainingSettings) -> Scores:
    """Loss and accuracy of the model as it stands, without dropout, in order of length to save padding."""
    right, predictions = np.zeros(len(data)), np.zeros(len(data), np.int64)
    if not len(data):
        return Scores(math.nan, math.nan, 0, right, predictions)
    device = next(model.parameters()).device
    precision = choose_precision(settings, device)
    total, count = 0.0, 0
    model.eval()
    batches = (
        compared_together(data, model.compared) if model.compared else length_order(data, settings.eval_batch_size)
    )
    for rows in batches:
        with autocast(device, precision):
            evaluated_model = model.score(data.batch(rows, device))
        total, count = total + float(evaluated_model.loss), count + evaluated_model.count
        right[rows] = evaluated_model.right.double().cpu().numpy()
        if len(evaluated_model.predictions):
            predictions[rows] = evaluated_model.predictions.cpu().numpy()
        else:
            predictions = predictions[:0]
    return Scores(total / count if count else math.nan, float(right.mean()), len(data), right, predictions)


@torch.no_grad()
def embed(model: TaskModel, data: Encoded, settings: TrainingSettings) -> NDArray[np.float32]:
    """Pooled features of the model as it stands, (n, hidden), float32."""
    device = next(model.parameters()).device
    precision = choose_precision(settings, device)
    features = np.zeros((len(data), model.hidden), np.float32)
    model.eval()
    for rows in length_order(data, settings.eval_batch_size):
        with autocast(device, precision):
            features[rows] = model.features(data.batch(rows, device)).cpu().numpy()
    return features


def compared_together(data: Encoded, size: int) -> list[NDArray[np.int64]]:
    """All rows once, in their own order, in groups of `size` or a little less, as even as they can be."""
    return np.array_split(np.arange(len(data)), math.ceil(len(data) / size))


def length_order(data: Encoded, batch_size: int) -> list[NDArray[np.int64]]:
    """All rows once, in batches of like length."""
    order = np.argsort(data.lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
