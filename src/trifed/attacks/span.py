r"""Span attacks: which tokens' vectors lie in the row space of an update?

The gradient of a linear layer's weight is $G^\top X$: its rows are combinations of the layer's inputs. Where an
input depends on nothing but a token and its place, as in front of the first block, an attacker tries them all
(Petrov et al., "DAGER", NeurIPS 2024, arXiv 2405.15586). Of LoRA's A the rows are combinations of the same inputs;
of B, of $Ax$; of a core, of $Ax$ too: $\nabla C = B^\top G^\top X A^\top$, so that A has to be known. All of them
say nothing once they stand for as many tokens as they have columns or rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trifed.federation.shared_model import SharedModel, plain_name
from trifed.methods.packing import Tensors

CHUNK = 512
"""Tokens that are tried together."""
NOISE = 1e-6
"""Singular values under this share of the largest are rounding."""
ROUGHLY = 5e-3
"""What is nearer than this in float32 is looked at again in float64."""
NEAR = (1e-3, 1e-4, 1e-5)
"""A vector this near to a span, relative to its length, is in it: the first that the span has room for."""
Floats = NDArray[np.float32]


class _Stop(Exception):  # noqa: N818
    """Thrown to end a forward pass once its inputs are known."""


@dataclass(frozen=True)
class Span:
    """The row space of one matrix. `through`: what maps a layer's input into it, (d, width); None for nothing.

    `basis`: (width, k), orthonormal, of the space or, where it fills more than half, of what is orthogonal to it
    (`outside`); `rank`: of the space.
    """

    basis: Tensor
    outside: bool
    rank: int
    through: Tensor | None

    def distance(self, inputs: Tensor) -> Tensor:
        """How far inputs (..., d) are from it, 0 to 1, (...)."""
        vectors = inputs if self.through is None else inputs @ self.through.to(inputs.dtype)
        if vectors.dtype == torch.float64 and not self.outside:  # 1 − share would have lost half of its digits
            basis = self.basis.double()
            left = vectors - (vectors @ basis) @ basis.T
            far: Tensor = left.norm(dim=-1) / vectors.norm(dim=-1).clamp_min(1e-30)
            return far
        share = (vectors @ self.basis.to(vectors.dtype)).square().sum(-1) / vectors.square().sum(-1).clamp_min(
            1e-30
        )
        return (share if self.outside else (1 - share).clamp_min(0)).sqrt()


def open_layers(shared_model: SharedModel, ids: Callable[[Tensor], dict[str, Tensor]]) -> list[str]:
    """Layers whose input at a place depends on the token there alone, in the order in which they are called.

    `ids`: tokens (n, length) → what the model takes.
    """
    words = shared_model.base.model.get_input_embeddings().num_embeddings
    tokens = torch.randint(words // 4, words, (2, 4), generator=torch.Generator().manual_seed(0))
    tokens[1, 1] = tokens[0, 1]
    caught: dict[str, Tensor] = {}
    tokens = tokens.to(shared_model.device)
    _listen(
        shared_model, set(_layers(shared_model)), lambda name, inputs: caught.setdefault(name, inputs), ids(tokens)
    )
    return [name for name, found in caught.items() if torch.allclose(found[0, 1], found[1, 1], atol=1e-5)]


def _layers(shared_model: SharedModel) -> Iterator[str]:
    """Plain names of the modules of which a matrix travels."""
    for name, shape in shared_model.layout:
        if len(shape) == 2 and name.endswith(".weight"):
            yield name.split(".lora_")[0] if ".lora_" in name else name.removesuffix(".weight")


def _listen(
    shared_model: SharedModel, names: set[str], hear: Callable[[str, Tensor], object], batch: Mapping[str, Tensor]
) -> None:
    """Run the model on a batch, and hear what goes into the layers of these names."""

    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        def caught(module: nn.Module, inputs: Any) -> None:
            if inputs and inputs[0].is_floating_point():
                hear(name, inputs[0])

        return caught

    handles = [
        module.register_forward_pre_hook(hook(plain_name(place)))
        for place, module in shared_model.model.named_modules()
        if plain_name(place) in names
    ]
    shared_model.model.eval()
    try:
        with torch.no_grad():
            shared_model.model.features(dict(batch))
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _inputs(shared_model: SharedModel, layer: str, batch: Mapping[str, Tensor]) -> Tensor:
    """What goes into a layer, (n, length, d); the model runs no further."""
    heard: list[Tensor] = []

    def hear(name: str, inputs: Tensor) -> None:
        heard.append(inputs)
        raise _Stop

    _listen(shared_model, {layer}, hear, batch)
    return heard[0]


def matrices(
    shared_model: SharedModel, observed: Tensors, layers: list[str]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """What was observed of these layers, (rows, width) in float64, and what maps a layer's input into its rows.

    The latter is (d, width), of the model as it is loaded: the attacker's; None for nothing.
    """
    everything = {plain_name(name): param.detach() for name, param in shared_model.model.named_parameters()}
    for name, values in observed.items():
        layer, _, part = name.partition(".lora_")
        if (layer if part else name.removesuffix(".weight")) not in layers or values.ndim != 2:
            continue
        through = None
        if part.startswith(("B", "C")):
            through = everything[f"{layer}.lora_A.weight"].T
            if part.startswith("B") and f"{layer}.lora_C.weight" in everything:
                through = through @ everything[f"{layer}.lora_C.weight"].T
        yield torch.from_numpy(values).double(), through


def spans(shared_model: SharedModel, observed: Tensors, layers: list[str]) -> list[Span]:
    """The row spaces that say something, of what was observed of these layers; the model is the attacker's."""
    found = []
    for values, through in matrices(shared_model, observed, layers):
        _, size, right = torch.linalg.svd(values)
        rank, width = int((size > NOISE * size[0]).sum()) if size[0] > 0 else 0, values.shape[1]
        if 0 < rank < width:
            outside = rank > width // 2
            basis = right[rank:] if outside else right[:rank]
            found.append(Span(basis.T.contiguous().to(shared_model.device), outside, rank, through))
    # An input itself says more than what a frame leaves of it; and a key's gradient lacks a direction, because a
    # softmax does not see what is added to all of its inputs.
    kept = [span for span in found if span.through is None] or found
    most = max((span.rank for span in kept), default=0)
    return [span for span in kept if span.rank == most]


def distances(
    shared_model: SharedModel,
    layers: list[str],
    trials: list[list[Span]],
    length: int,
    ids: Callable[[Tensor], dict[str, Tensor]],
) -> list[Floats]:
    """For each trial how far every token at every place is from its spans, mean over these, (words, length)."""
    words = shared_model.base.model.get_input_embeddings().num_embeddings
    found = [np.ones((words, length), np.float32) for _ in trials]
    for first in range(0, words, CHUNK):
        tokens = torch.arange(first, min(first + CHUNK, words), device=shared_model.device)
        inputs = _inputs(shared_model, layers[0], ids(tokens[:, None].expand(-1, length).contiguous()))
        for place, trial in enumerate(trials):
            if trial:
                far = torch.stack([span.distance(inputs) for span in trial]).mean(0)
                near = far < ROUGHLY
                if near.any():
                    exact = inputs[near].double()
                    far[near] = torch.stack([span.distance(exact) for span in trial]).mean(0).float()
                found[place][first : first + len(tokens)] = far.cpu().numpy()
    return found


def texts_from(far: Floats, batch: int, rank: int) -> list[list[int]]:
    """Up to `batch` texts from the tokens that are near, in order of their places; none where a span says nothing.

    `rank`: of the span, which holds no more different inputs. Where words and places are added to each other, a
    span that holds a at 1, b at 1 and b at 2 holds a at 2 as well: which tokens there are is sure, where they
    stand is not. So every token gets its nearest place first, and then others get what is left of the rank.
    """
    for near in NEAR:
        tokens, places = np.nonzero(far < near)
        if len(np.unique(tokens)) <= rank:
            break
    else:
        return []
    order = np.argsort(far[tokens, places], kind="stable")
    chosen: dict[int, list[int]] = {}
    known: set[int] = set()
    for again in (False, True):
        for token, place in ((int(tokens[n]), int(places[n])) for n in order):
            there = chosen.setdefault(place, [])
            room = len(there) < batch and sum(map(len, chosen.values())) < rank
            if token not in there and room and (again or token not in known):
                there.append(token)
                known.add(token)
    texts: list[list[int]] = [[] for _ in range(batch)]
    for place in sorted(chosen):
        for text, token in zip(texts, chosen[place], strict=False):
            text.append(token)
    return [text for text in texts if text]
