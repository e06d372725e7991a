"""Evaluation of a model: scores, features, and the mean gradient, without dropout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trifed.config.settings import TrainingSettings
from trifed.federation.training.batches import in_chunks
from trifed.federation.training.device_placement import autocast, device_and_precision
from trifed.tasks.base import Encoded, TaskModel


@dataclass(frozen=True)
class Scores:
    """The scores of n examples; NaN without any.

    Attributes:
        loss: Mean over all predictions, in nats.
        accuracy: Mean of `right`, in [0, 1].
        examples: Number of examples, n.
        right: Share of each example's predictions that are correct, (n,).
        predictions: Predicted classes, (n,), or (0,) for a task without classes.
        probabilities: Predicted probabilities, (n, n_labels), predicted numbers, (n, 1), or (0, 0) else.
        entities: Numbers of true, predicted and rightly predicted entities, (n, 3), or (0, 3) without tags.
    """

    loss: float
    accuracy: float
    examples: int
    right: NDArray[np.float64]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    entities: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))


def evaluating(model: TaskModel) -> None:
    """Switch dropout off, unless it is off already; the parts of a model are always switched together."""
    if model.training:
        model.eval()


def mean_gradient(
    model: TaskModel, weights: Mapping[str, nn.Parameter], data: Encoded, settings: TrainingSettings
) -> dict[str, NDArray[np.float32]]:
    """Return the gradient of the mean training loss for `weights`, frozen or not, without dropout."""
    device, precision = device_and_precision(model, settings)
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    trainable = {name: weight.requires_grad for name, weight in weights.items()}
    evaluating(model)
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
    device, precision = device_and_precision(model, settings)
    total, count, probabilities, entities = 0.0, 0, np.zeros((0, 0), np.float32), np.zeros((0, 3), np.int64)
    evaluating(model)
    batches = (
        compared_together(data, model.compared) if model.compared else length_order(data, settings.eval_batch_size)
    )
    for rows in batches:
        with autocast(device, precision):
            scores = model.score(data.batch(rows, device))
        total, count = total + float(scores.loss), count + scores.count
        right[rows] = scores.right.double().cpu().numpy()
        entities = np.concatenate([entities, scores.entities.cpu().numpy()])  # in any order: they are summed up
        if len(scores.predictions):
            predictions[rows] = scores.predictions.cpu().numpy()
        else:
            predictions = predictions[:0]
        if len(scores.probabilities):
            found = scores.probabilities.cpu().numpy()
            if not len(probabilities):
                probabilities = np.zeros((len(data), found.shape[1]), np.float32)
            probabilities[rows] = found
    right = model.shares_right(right, data)
    loss = total / count if count else math.nan
    return Scores(loss, float(right.mean()), len(data), right, predictions, probabilities, entities)


def example_losses(model: TaskModel, data: Encoded, settings: TrainingSettings) -> NDArray[np.float64]:
    """Return the mean loss of each of n examples, (n,), in nats, without dropout.

    Where examples are compared with each other, it is the mean loss of each group that is compared, (n_groups,).
    """
    if not len(data):
        return np.zeros(0)
    scores = evaluate(model, data, settings)
    if len(scores.predictions):  # one label for each example, whose probability is known
        right = scores.probabilities[np.arange(len(data)), data.labels].astype(np.float64)
        return np.asarray(-np.log(np.maximum(right, np.finfo(np.float32).tiny)), np.float64)
    device, precision = device_and_precision(model, settings)
    groups = compared_together(data, model.compared) if model.compared else in_chunks(np.arange(len(data)), 1)
    losses = []
    with torch.no_grad():
        for rows in groups:
            with autocast(device, precision):
                scored = model.score(data.batch(rows, device))
            losses.append(float(scored.loss) / max(1, scored.count))
    return np.array(losses, np.float64)


@torch.no_grad()
def evaluate_features(
    model: TaskModel, features: NDArray[np.float32], data: Encoded, settings: TrainingSettings
) -> Scores | None:
    """Return the scores of a model whose pooled features of `data`, (n, hidden), are known already.

    None for a task whose scores need more than the features.
    """
    device, precision = device_and_precision(model, settings)
    labels = torch.from_numpy(data.labels).to(device)
    evaluating(model)
    with autocast(device, precision):
        scores = model.score_features(torch.from_numpy(features).to(device), labels)
    if scores is None:
        return None
    right = scores.right.double().cpu().numpy()
    loss = float(scores.loss) / scores.count if scores.count else math.nan
    accuracy = float(right.mean()) if len(right) else math.nan
    predictions, probabilities = scores.predictions.cpu().numpy(), scores.probabilities.cpu().numpy()
    return Scores(loss, accuracy, len(data), right, predictions, probabilities)


@torch.no_grad()
def embed(model: TaskModel, data: Encoded, settings: TrainingSettings) -> NDArray[np.float32]:
    """Return the model's pooled features, (n, hidden), float32."""
    device, precision = device_and_precision(model, settings)
    features = np.zeros((len(data), model.hidden), np.float32)
    evaluating(model)
    for rows in length_order(data, settings.eval_batch_size):
        with autocast(device, precision):
            features[rows] = model.features(data.batch(rows, device)).cpu().numpy()
    return features


def compared_together(data: Encoded, size: int) -> list[NDArray[np.int64]]:
    """Split all rows, in order, into groups of nearly equal sizes of at most `size`."""
    return np.array_split(np.arange(len(data)), math.ceil(len(data) / size))


def length_order(data: Encoded, batch_size: int) -> list[NDArray[np.int64]]:
    """Return all rows in batches, sorted by length."""
    return in_chunks(np.argsort(data.lengths, kind="stable"), batch_size)
