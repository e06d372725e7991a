"""Several clients in one forward and backward pass over one frozen base.

The clients' batches lie one after the other in one batch, so whatever treats rows alone, as the frozen base does,
needs no change. Only the layers that train compute with each client's own values: y_k = x_k W_kᵀ + b_k, as one
batched product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trifed.tasks.base import Batch, BiasHead, TaskModel
from trifed.tasks.tokens import MULTIPLE

Parameters = Mapping[str, nn.Parameter]


class CannotStackError(Exception):
    """Several clients cannot share a pass of this model; they train one after the other."""


class Stack:
    """Trained tensors of K clients, stacked by name, in the places of the model's own.

    Attributes:
        size: K.
        tensors: (K, ...) each.
    """

    def __init__(self, model: TaskModel, shared: Parameters, tensors: Mapping[str, Tensor]) -> None:
        """Prepare the model for stacked `tensors`; `shared` are its own parameters, by the same names."""
        self.model = model
        self.tensors = tensors
        self.size = len(next(iter(tensors.values())))
        self.layers = _layers(model, {id(param): tensors[name] for name, param in shared.items()})

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the model compute with the stacked tensors, each client's with its own block of rows."""
        for layer, (weight, bias) in self.layers.items():
            layer.forward = partial(_compute, self.size, weight, bias)
        self.model.clients = self.size
        try:
            yield
        finally:
            self.model.clients = 1
            for layer in self.layers:
                del layer.forward


class ClientStack(Stack):
    """A stack of clients' parameters, which are views of the stacked tensors from now on."""

    def __init__(self, model: TaskModel, shared: Parameters, clients: Sequence[Parameters]) -> None:
        """Stack the `clients`' parameters; `shared` are the model's own, whose places they take."""
        stacked = {name: torch.stack([client[name].detach() for client in clients]) for name in shared}
        for name, values in stacked.items():
            for client, own in zip(clients, values, strict=True):
                client[name].data = own
        for name, values in stacked.items():
            values.requires_grad_(shared[name].requires_grad)
        super().__init__(model, shared, stacked)
        self.clients = clients

    def hand_out_gradients(self) -> None:
        """Set the gradient of every client's parameters to its part of the stacked ones."""
        for name, stacked in self.tensors.items():
            parts = [None] * self.size if stacked.grad is None else stacked.grad.unbind()
            for client, gradient in zip(self.clients, parts, strict=True):
                client[name].grad = gradient
            stacked.grad = None


def can_stack(model: nn.Module, shared: Parameters) -> bool:
    """Return True if rows do not depend on each other and all that trains are linear layers or a bias."""
    wanted = {id(param) for param in shared.values()}
    found = sum(
        id(param) in wanted
        for layer in model.modules()
        if isinstance(layer, nn.Linear | BiasHead)
        for param in layer.parameters(recurse=False)
    )
    return found == len(wanted) > 0 and not any(
        isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()
    )


def _layers(
    model: nn.Module, stacked: Mapping[int, Tensor]
) -> dict[nn.Module, tuple[Tensor | None, Tensor | None]]:
    """Return weight and bias of each layer that trains, stacked or, if frozen, as they are."""
    found: dict[nn.Module, tuple[Tensor | None, Tensor | None]] = {}
    for layer in model.modules():
        if isinstance(layer, nn.Linear | BiasHead):
            own = [getattr(layer, name, None) for name in ("weight", "bias")]
            if any(id(param) in stacked for param in own):
                weight, bias = (stacked.get(id(param), param) for param in own)
                found[layer] = (weight, bias)
    return found


def _compute(clients: int, weight: Tensor | None, bias: Tensor | None, rows: Tensor) -> Tensor:
    """Apply each client's layer to its rows.

    Args:
        clients: K, the number of clients.
        weight: (K, d_out, d_in), or (d_out, d_in) if frozen; None for a layer that only adds a bias.
        bias: (K, d_out), or (d_out,) if frozen.
        rows: (K * n, ..., d_in).
    """
    result = rows.reshape(clients, -1, rows.shape[-1])
    if weight is not None:
        result = torch.bmm(result, weight.mT) if weight.dim() == 3 else result @ weight.mT
    if bias is not None:
        result = result + (bias[:, None] if bias.dim() == 2 else bias).to(result.dtype)
    return result.reshape(*rows.shape[:-1], result.shape[-1])


def join(batches: Sequence[Batch], fill: Mapping[str, int]) -> Batch:
    """Return one batch with the same number of rows of each client, padded on the right to one width.

    Tensors that are equally wide at each client, as token ids and their mask, have one width in the batch; others,
    as the inputs of an encoder and a decoder, have different ones. So a width of the batch stands for one width of
    each client.

    Args:
        batches: The clients' batches. Missing rows repeat the client's last one.
        fill: Padding of each tensor by its name; 0 for others.

    Raises:
        CannotStackError: A tensor has not one row for each example, or rows of other shapes.
    """
    if len(batches) == 1:
        return dict(batches[0])
    rows = max(len(batch["labels"]) for batch in batches)
    joined: Batch = {}
    widths: dict[tuple[int, ...], int] = {}
    for name in batches[0]:
        parts = [batch[name] for batch in batches]
        if any(len(part) != len(batch["labels"]) for part, batch in zip(parts, batches, strict=True)):
            raise CannotStackError(f"'{name}' has not one row for each example")
        own = tuple(part.shape[1] for part in parts if part.dim() == 2)
        if own not in widths:
            step = MULTIPLE.get(parts[0].device.type, 1)
            possible = count(max(own, default=0), step)
            widths[own] = next(width for width in possible if width not in widths.values())
        joined[name] = _join(parts, rows, fill.get(name, 0), widths[own])
    return joined


def _join(parts: Sequence[Tensor], rows: int, fill: int, width: int) -> Tensor:
    if any(part.dim() > 2 and part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise CannotStackError("the clients' inputs differ in shape")
    padded = []
    for part in parts:
        if part.dim() == 2 and part.shape[1] < width:
            part = pad(part, (0, width - part.shape[1]), value=fill)
        missing = rows - len(part)
        padded.append(torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part)
    return torch.cat(padded)
