"""Local training of a round, of one client or of several in the same pass, independent of methods."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trifed.adapters.dual import set_local_share
from trifed.common.seeding import seeded
from trifed.config.settings import TrainingSettings
from trifed.federation.training.batches import (
    RoundRandom,
    Rows,
    in_chunks,
    learning_rate,
    round_batches,
    steps_per_round,
)
from trifed.federation.training.class_weights import Weights
from trifed.federation.training.device_placement import autocast, device_and_precision
from trifed.federation.training.dropout import ClientDropout, Part
from trifed.federation.training.parallel import StoppedError
from trifed.federation.training.stack import CannotStackError, ClientStack, join
from trifed.methods.base import Proximal
from trifed.tasks.base import Batch, Encoded, TaskModel

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


Gradient = Callable[[TaskModel, Mapping[str, nn.Parameter], "Examples", torch.dtype], Tensor | None]
"""Model, trained parameters, examples, precision → one step's loss, detached, None without an example; sets the
parameters' gradients."""


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
class LocalTraining:
    """One client's local training of one round: parameters, data, random numbers and place in the schedule.

    Attributes:
        parameters: The client's parameters by name: the model's own, or, beside other clients, others. They are
            trained in place, but for those that ask for no gradient.
        data: The client's training examples.
        random: The round's random numbers.
        steps_before: Steps of the rounds before this one, for the learning rate schedule: also of those that the
            client missed, so that its rate is that of the others.
        steps_in_all: Steps of all rounds of the run, for the learning rate schedule.
        moments: AdamW's state from an earlier round; empty for a new state.
        proximal_term: Proximal term to add to the gradients, if any.
        dp_step: Chooses each step's examples and computes its private gradient. The number of steps is then
            `settings.steps`, for any number of examples.
        class_weights: Weight of each label in the loss, (n_labels,); None if all examples weigh the same.
        frozen: Names of the parameters that keep their values in this round.
        local_share: Share of a local LoRA beside the global one; None if there is none.
    """

    parameters: Mapping[str, nn.Parameter]
    data: Encoded
    random: RoundRandom
    steps_before: int
    steps_in_all: int
    moments: Moments
    proximal_term: ProximalTerm | None = None
    dp_step: Gradient | None = None
    class_weights: Weights | None = None
    frozen: frozenset[str] = frozenset()
    local_share: float | None = None

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that change in this round, by name."""
        return {name: param for name, param in self.parameters.items() if name not in self.frozen}


class Examples:
    """One client's examples as batches on a device, with random changes of the inputs where the task makes any."""

    def __init__(
        self,
        model: TaskModel,
        data: Encoded,
        device: torch.device,
        seed: int,
        class_weights: Weights | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)
        self.class_weights = None if class_weights is None else torch.from_numpy(class_weights).to(device)

    def batch(self, rows: Rows) -> Batch:
        """Return the given rows as a batch, with the weight of each example if labels have weights."""
        batch = self.model.augmented(self.data.batch(rows, self.device), self.generator)
        if self.class_weights is None:
            return batch
        return {**batch, "weights": self.class_weights[batch["labels"]]}


class _Running:
    """The state of one client's training: optimiser, steps and losses."""

    def __init__(self, job: LocalTraining, model: TaskModel, settings: TrainingSettings) -> None:
        self.job = job
        self.settings = settings
        self.device, self.precision = device_and_precision(model, settings)
        self.examples = Examples(model, job.data, self.device, job.random.dropout, job.class_weights)
        self.trained = job.trained
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        for key, tensor in job.moments.items():
            kind, name = key.split("/", 1)
            if name not in job.frozen:
                param = job.parameters[name]
                self.optimizer.state[param][kind] = tensor.to(param.device, copy=True)
        planned = settings.steps if job.dp_step and settings.steps else None
        self.steps = planned or steps_per_round(len(job.data), settings)
        self.batches: Iterator[Rows] = round_batches(job.data.lengths, settings, job.random)
        self.losses: list[Tensor] = []
        self.done = 0

    def step(self, loss: Tensor | None) -> None:
        """Take an optimiser step with the parameters' gradients, which came with this loss."""
        job, settings = self.job, self.settings
        if loss is not None:
            self.losses.append(loss)
        if job.proximal_term:
            job.proximal_term.add_gradient()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.trained.values(), settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(*self._place_in_the_schedule(), settings)
        self.optimizer.step()
        self.done += 1
        if job.proximal_term:
            job.proximal_term.move(self.done, self.steps)
        for param in job.parameters.values():  # those that are frozen in this round have gradients too
            param.grad = None

    def _place_in_the_schedule(self) -> tuple[int, int]:
        """Return the number of the next step, from 0, and the number of steps that the schedule covers."""
        if self.settings.schedule == "linear-each-round":
            return self.done, self.steps
        return self.job.steps_before + self.done, self.job.steps_in_all

    def result(self) -> TrainingResult:
        """Return the round's result. The moments are on the CPU, because many clients may share one GPU."""
        moments = {
            f"{kind}/{name}": tensor.detach().to("cpu", copy=True)
            for name, param in self.trained.items()
            for kind, tensor in self.optimizer.state[param].items()
        }
        return TrainingResult(
            float(torch.stack(self.losses).mean()) if self.losses else math.nan, self.done, moments
        )


def train_locally(
    model: TaskModel,
    jobs: Sequence[LocalTraining],
    settings: TrainingSettings,
    shared: Mapping[str, nn.Parameter] | None = None,
    stop: threading.Event | None = None,
) -> list[TrainingResult]:
    """Train the clients' parameters in place for one round, several clients in the same passes.

    Args:
        model: The model.
        jobs: One for each client.
        settings: The training settings.
        shared: The model's own parameters, whose places those of several clients take.
        stop: Given where other threads train other clients: training is given up once it is set.

    Raises:
        CannotStackError: Several clients cannot train at the same time with this model, or one of them has a
            private gradient. The parameters may have changed.
        StoppedError: `stop` was set.
    """
    if len(jobs) > 1 and any(job.dp_step for job in jobs):
        raise CannotStackError("a private gradient is computed for one client at a time")
    running = [_Running(job, model, settings) for job in jobs]
    device, seeds = running[0].device, [job.random.dropout for job in jobs]
    dropout = ClientDropout(seeds, device, model.further_rows)
    model.train()
    if jobs[0].local_share is not None:
        set_local_share(model, jobs[0].local_share)
    with ExitStack() as contexts:
        if stop is None:
            # Other random numbers of a model come from torch's own generators.
            contexts.enter_context(seeded(device, seeds[0]))
        if not settings.gradient_checkpointing:  # it computes a mask twice, which only torch's generator repeats
            contexts.enter_context(dropout)
        if len(jobs) == 1:
            _train_alone(model, running[0], dropout, stop)
        else:
            _train_together(model, running, shared or {}, dropout, stop)
    return [each.result() for each in running]


def _train_alone(model: TaskModel, client: _Running, dropout: ClientDropout, stop: threading.Event | None) -> None:
    job, settings = client.job, client.settings
    while client.done < client.steps:
        _check(stop)
        if job.dp_step:
            dropout.parts = [Part(0, {})]
            client.step(job.dp_step(model, client.trained, client.examples, client.precision))
        else:
            rows = next(client.batches)
            batches = [client.examples.batch(part) for part in in_chunks(rows, settings.micro_batch or len(rows))]
            with _without_common_random_numbers(client.device, stop is not None and client.done == 0):
                loss = _backward(model, batches, client.precision, dropout)
            client.step(loss)


def _backward(model: TaskModel, batches: list[Batch], precision: torch.dtype, dropout: ClientDropout) -> Tensor:
    """Add the gradient of the mean loss over all predictions of all batches, and return that loss, detached.

    Each batch is weighted by its number of predictions, so that the result does not depend on the parts.
    """
    device = batches[0]["labels"].device
    counts = [model.predictions(batch) for batch in batches]
    total = torch.zeros((), device=device)
    for batch, count in zip(batches, counts, strict=True):
        dropout.parts = parts_of([batch], batch)
        with autocast(device, precision):
            loss = model.loss(batch)
        share = count / max(1, sum(counts))
        torch.autograd.backward(loss * share)
        total = total + loss.detach() * share
    return total


def _train_together(
    model: TaskModel,
    clients: Sequence[_Running],
    shared: Mapping[str, nn.Parameter],
    dropout: ClientDropout,
    stop: threading.Event | None,
) -> None:
    stacked: list[_Running] = []
    while going := [client for client in clients if client.done < client.steps]:
        _check(stop)
        if going != stacked:  # at first, and whenever a client has taken all its steps
            stacked, stack = going, ClientStack(model, shared, [client.job.parameters for client in going])
            dropout.clients = [clients.index(client) for client in going]
        losses = _backward_together(model, stack, going, dropout)
        for client, loss in zip(going, losses, strict=True):
            client.step(loss)


def _backward_together(
    model: TaskModel, stack: ClientStack, clients: Sequence[_Running], dropout: ClientDropout
) -> list[Tensor]:
    """Set the gradient of each client's mean loss on its next batch, and return the losses, detached."""
    batches = [client.examples.batch(next(client.batches)) for client in clients]
    joined = join(batches, {"input_ids": getattr(clients[0].job.data, "pad_id", 0)})
    dropout.parts = parts_of(batches, joined)
    rows = max(part.rows for part in dropout.parts)
    device = clients[0].device
    with (
        _without_common_random_numbers(device, clients[0].done == 0),
        stack.installed(),
        autocast(device, clients[0].precision),
    ):
        outputs = model.outputs(joined)
        losses = [
            model.loss_of(part[: len(batch["labels"])], batch) * min(1, model.predictions(batch))
            for part, batch in zip(torch.split(outputs, rows), batches, strict=True)
        ]
    torch.autograd.backward(losses)
    stack.hand_out_gradients()
    return [loss.detach() for loss in losses]


def _check(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise StoppedError


@contextmanager
def _without_common_random_numbers(device: torch.device, checked: bool) -> Iterator[None]:
    """Check, if `checked`, that a pass does not draw from torch's generator, which is one for all clients."""
    before = _random_state(device) if checked else None
    yield
    if before is not None and not torch.equal(before, _random_state(device)):
        raise CannotStackError("the model draws random numbers that do not belong to one client")


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def parts_of(batches: Sequence[Batch], joined: Batch) -> list[Part]:
    """Return the number of rows of each batch, and the widths of its tokens by those in the `joined` batch."""
    tokens = [name for name, tensor in joined.items() if tensor.dim() == 2]
    return [
        Part(len(batch["labels"]), {joined[name].shape[1]: batch[name].shape[1] for name in tokens})
        for batch in batches
    ]
