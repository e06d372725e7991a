"""Dropout whose random numbers belong to one client each, also where several clients share a forward pass.

Every client draws its masks from a generator of its own, in the shape that its batch has by itself. So a client's
masks are the same alone and beside others, whatever padding the others need. On the CPU a mask takes a twentieth
of the time of torch's, which draws one random number after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from trifed.federation.training.stack import CannotStackError

LEVELS = 2**16
"""Values of one random number: a probability is rounded to a multiple of 1/LEVELS."""

_BITS = {torch.float32: np.int32, torch.bfloat16: np.int16, torch.float16: np.int16}


@dataclass(frozen=True)
class Part:
    """One client's part of a batch.

    Attributes:
        rows: Its examples.
        widths: Its own padded lengths, such as those of an encoder and a decoder, by those of the whole batch.
    """

    rows: int
    widths: Mapping[int, int]


class ClientDropout(TorchFunctionMode):
    """Within this context, dropout draws from the clients' generators, one seed each.

    It replaces `torch.nn.functional.dropout`, which `nn.Dropout` calls, and the dropout of
    `scaled_dot_product_attention`. Before a forward pass, `parts` has to be set to the clients' parts of the
    batch, which has the same number of rows for each, one client after the other.

    Attributes:
        clients: Positions in `seeds` of the clients that are in the batch.
        further: Rows that each client has beside its examples, such as the classes' sentences.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, further: int = 0) -> None:
        super().__init__()
        make = _on_cpu if device.type == "cpu" else _on_device
        self.draw = [make(seed, device) for seed in seeds]
        self.parts: Sequence[Part] = [Part(0, {})]
        self.clients: Sequence[int] = range(len(seeds))
        self.further = further

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the two functions; call every other one as it is."""
        if func is functional.dropout:
            return self._dropout(*args, **(kwargs or {}))
        if func is functional.scaled_dot_product_attention and _probability(*args, **(kwargs or {})) > 0:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: A002
        return input * self.mask(input, p) if training and p > 0 else input

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Return softmax(scale · q kᵀ + mask), with dropout, times v: the definition in torch's documentation."""
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.mT
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
        elif attn_mask is not None:
            scores = scores + attn_mask
        shares = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        return (shares * self.mask(shares, dropout_p)) @ value

    def mask(self, like: Tensor, p: float) -> Tensor:
        """Return factors, 0 with probability `p` and else 1 / (1 - p), in the shape and dtype of `like`.

        Raises:
            CannotStackError: `like` does not consist of the rows of several clients, as DeBERTa's relative
                positions, which belong to the model.
        """
        clients, rows = len(self.clients), max(part.rows for part in self.parts)
        # Rows and positions may be in one dimension.
        flat = [width for width in self.parts[0].widths if like.shape[0] == clients * rows * width]
        if clients > 1 and not self._consists_of_rows(like, clients * rows, flat):
            raise CannotStackError("the model has dropout of values that all clients share")
        if flat and like.dim() == 2:
            shape: tuple[int, ...] = (clients, rows, flat[0], *like.shape[1:])
        else:
            shape = (clients, like.shape[0] // clients, *like.shape[1:])
        masks = []
        for client, part in zip(self.clients, self.parts, strict=True):
            own = [part.rows if shape[1] == rows else shape[1], *shape[2:]]
            for place in (1,) if len(own) < 4 else (2, 3):  # positions; in attention, of queries and keys
                if place < len(own):
                    own[place] = part.widths.get(own[place], own[place])
            masks.append(_padded(self.draw[client](own, p, like.dtype), shape[1:]))
        return (masks[0] if clients == 1 else torch.stack(masks)).reshape(like.shape)

    def _consists_of_rows(self, values: Tensor, rows: int, flat: Sequence[int]) -> bool:
        """Return whether values are of the `rows` of all clients, or of the further rows that each client has."""
        count = values.shape[0]
        if self.further and count % (self.further * len(self.clients)) == 0:
            return True
        return count == rows or bool(flat) if values.dim() == 2 else count % rows == 0


def _probability(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *_: Any, **__: Any
) -> float:
    return dropout_p


Draw = Callable[[Sequence[int], float, torch.dtype], Tensor]


def _on_cpu(seed: int, device: torch.device) -> Draw:
    """Return a function that draws masks by 16 random bits for each number."""
    bits = np.random.SFC64(seed)

    def draw(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
        count, threshold = math.prod(shape), round(p * LEVELS)
        numbers: NDArray[np.uint16] = bits.random_raw(-(-count // 4)).view(np.uint16)[:count]
        kept, factor = numbers >= threshold, LEVELS / max(1, LEVELS - threshold)
        if dtype not in _BITS:
            return torch.from_numpy(kept).reshape(list(shape)).to(dtype) * factor
        # 0 or the bits of the factor: numpy multiplies integers many times faster than torch converts booleans.
        whole = kept.astype(_BITS[dtype]) * _bits_of(factor, dtype)
        return torch.from_numpy(whole).view(dtype).reshape(list(shape))

    return draw


@cache
def _bits_of(factor: float, dtype: torch.dtype) -> Any:
    """Return the bits of a number of `dtype` as a numpy integer of the same size."""
    integer = _BITS[dtype]
    return integer(torch.tensor(factor, dtype=dtype).view(getattr(torch, integer.__name__)).item())


def _on_device(seed: int, device: torch.device) -> Draw:
    """Return a function that draws masks on the device, so that the host does not wait for it."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
        kept = torch.empty(list(shape), dtype=dtype, device=device).bernoulli_(1 - p, generator=generator)
        return kept.div_(1 - p) if p < 1 else kept

    return draw


def _padded(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the mask with ones for rows and positions that are padding."""
    if mask.shape == torch.Size(shape):
        return mask
    whole = mask.new_ones(list(shape))
    whole[tuple(slice(size) for size in mask.shape)] = mask
    return whole
