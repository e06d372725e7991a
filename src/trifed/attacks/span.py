r"""Span attacks: find the tokens whose vectors lie in the row space of an update.

The gradient of a linear layer's weight is $G^\top X$: its rows are combinations of the layer's inputs. If an input
depends on nothing but a token and its position, as before the first block, an attacker can try all tokens (Petrov
et al., "DAGER", NeurIPS 2024, arXiv 2405.15586). The rows of LoRA's A are combinations of the same inputs; those
of B, and of a core, are combinations of $Ax$ ($\nabla C = B^\top G^\top X A^\top$), so that A has to be known. A
matrix shows nothing once it stands for as many tokens as it has columns or rows.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trifed.federation.training.shared_model import SharedModel, plain_name
from trifed.methods.packing import Tensors

CHUNK = 512
"""Tokens that are tried together."""
ROUNDING = 1e-6
"""Singular values below this share of the largest are rounding errors."""
RECHECK = 5e-3
"""Distances below this in float32 are computed again in float64."""
NEAR = (1e-3, 1e-4, 1e-5)
"""Largest distances, relative to a vector's length, at which it counts as inside a span, in the order of trial."""
Floats = NDArray[np.float32]
MakeBatch = Callable[[Tensor], dict[str, Tensor]]
"""Makes a batch for the model from tokens, (n, length)."""


class _Stop(Exception):  # noqa: N818
    """Raised to end a forward pass."""


@dataclass(frozen=True)
class Span:
    """The row space of one matrix.

    Attributes:
        basis: Orthonormal basis (width, k) of the space, or of its orthogonal complement.
        outside: True if the basis is that of the complement; it is smaller if the space has most dimensions.
        rank: Dimensions of the space.
        through: Maps a layer's input to the width of the matrix, (d, width); None for the identity.
    """

    basis: Tensor
    outside: bool
    rank: int
    through: Tensor | None

    def distance(self, inputs: Tensor) -> Tensor:
        """Return the distance of inputs (..., d) from the space relative to their length, 0 to 1, (...)."""
        vectors = inputs if self.through is None else inputs @ self.through.to(inputs.dtype)
        basis = self.basis.to(vectors.dtype)
        if vectors.dtype == torch.float64 and not self.outside:  # 1 − share would lose half of the digits
            rest = vectors - (vectors @ basis) @ basis.T
            return torch.div(rest.norm(dim=-1), vectors.norm(dim=-1).clamp_min(1e-30))
        share = (vectors @ basis).square().sum(-1) / vectors.square().sum(-1).clamp_min(1e-30)
        return (share if self.outside else (1 - share).clamp_min(0)).sqrt()


def record_calls(
    shared_model: SharedModel, modules: Iterable[nn.Module], batch: Mapping[str, Tensor], *, first: bool = False
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Run the model on a batch, and return the floating-point input and output of some modules in order of calls.

    Args:
        shared_model: The model with its tensors loaded.
        modules: Modules of the model.
        batch: Inputs of the model.
        first: True to stop after the first of these modules.
    """
    calls: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if inputs and isinstance(output, Tensor) and inputs[0].is_floating_point():
            calls.setdefault(module, (inputs[0].detach(), output.detach()))
            if first:
                raise _Stop

    shared_model.model.eval()
    with torch.no_grad(), suppress(_Stop), ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(hook))
        shared_model.model.features(dict(batch))
    return calls


def layer_name(parameter: str) -> str:
    """Return the plain name of the layer that a weight matrix or an adapter's matrix belongs to."""
    return parameter.split(".lora_")[0].removesuffix(".weight")


def find_modules(shared_model: SharedModel, layers: Container[str]) -> dict[nn.Module, str]:
    """Return the modules of these plain names, with their names."""
    named = ((module, plain_name(name)) for name, module in shared_model.model.named_modules())
    return {module: name for module, name in named if name in layers}


def position_wise_layers(shared_model: SharedModel, make_batch: MakeBatch) -> list[str]:
    """Return the layers whose input at a position depends on the token there alone, in the order of calls."""
    words = shared_model.base.model.get_input_embeddings().num_embeddings
    tokens = torch.randint(words // 4, words, (2, 4), generator=torch.Generator().manual_seed(0))
    tokens[1, 1] = tokens[0, 1]
    sent = {layer_name(n) for n, shape in shared_model.layout if len(shape) == 2 and n.endswith(".weight")}
    modules = find_modules(shared_model, sent)
    calls = record_calls(shared_model, modules, make_batch(tokens.to(shared_model.device)))
    return [modules[m] for m, (x, _) in calls.items() if torch.allclose(x[0, 1], x[1, 1], atol=1e-5)]


def matrices(
    shared_model: SharedModel, observed: Tensors, layers: list[str]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the observed matrices of these layers, with what maps a layer's input into the space of their rows.

    Each is (rows, width) in float64, and (d, width) of the loaded model, which is the attacker's; None for the
    identity.
    """
    params = {plain_name(name): param.detach() for name, param in shared_model.model.named_parameters()}
    for name, values in observed.items():
        layer, part = layer_name(name), name.partition(".lora_")[2]
        if layer in layers and values.ndim == 2:
            through = None
            if part.startswith(("B", "C")):
                through = params[f"{layer}.lora_A.weight"].T
                if part.startswith("B") and f"{layer}.lora_C.weight" in params:
                    through = through @ params[f"{layer}.lora_C.weight"].T
            yield torch.from_numpy(values).double(), through


def spans(shared_model: SharedModel, observed: Tensors, layers: list[str]) -> list[Span]:
    """Return the informative row spaces of these layers' observed matrices, seen with the attacker's model."""
    informative = []
    for values, through in matrices(shared_model, observed, layers):
        _, size, right = torch.linalg.svd(values)
        rank, width = int((size > ROUNDING * size[0]).sum()) if size[0] > 0 else 0, values.shape[1]
        if 0 < rank < width:
            outside = rank > width // 2
            basis = right[rank:] if outside else right[:rank]
            informative.append(Span(basis.T.contiguous().to(shared_model.device), outside, rank, through))
    # An input itself is more informative than its projection. A key's gradient lacks a direction, because a
    # softmax ignores what is added to all of its inputs.
    kept = [span for span in informative if span.through is None] or informative
    largest = max((span.rank for span in kept), default=0)
    return [span for span in kept if span.rank == largest]


def distances(
    shared_model: SharedModel, layers: list[str], trials: list[list[Span]], length: int, make_batch: MakeBatch
) -> list[Floats]:
    """Return for each trial every token's distance at every position, mean over its spans, (words, length).

    Args:
        shared_model: The model with the tensors that the attacker assumes.
        layers: Layers whose input depends on the token at a position alone.
        trials: For each trial the spans of its observation.
        length: Number of positions.
        make_batch: Makes a batch for the model from tokens, (n, length).
    """
    words = shared_model.base.model.get_input_embeddings().num_embeddings
    results = [np.ones((words, length), np.float32) for _ in trials]
    modules = find_modules(shared_model, layers[:1])
    for first in range(0, words, CHUNK):
        tokens = torch.arange(first, min(first + CHUNK, words), device=shared_model.device)
        batch = make_batch(tokens[:, None].expand(-1, length).contiguous())
        [(inputs, _)] = record_calls(shared_model, modules, batch, first=True).values()
        for trial, result in zip(trials, results, strict=True):
            if trial:
                far = torch.stack([span.distance(inputs) for span in trial]).mean(0)
                near = far < RECHECK
                exact = inputs[near].double()
                far[near] = torch.stack([span.distance(exact) for span in trial]).mean(0).float()
                result[first : first + len(tokens)] = far.cpu().numpy()
    return results


def texts_from(distance: Floats, batch: int, rank: int) -> list[list[int]]:
    """Compose up to `batch` texts of the tokens near a span, in the order of their positions.

    If words and positions are added to each other, a span that contains a at 1, b at 1 and b at 2 contains a at 2
    as well: the tokens are certain, their positions are not. So every token gets its nearest position first, and
    further positions share what is left of the rank.

    Args:
        distance: Distance of every token at every position, (words, length).
        batch: Number of texts in the batch.
        rank: Dimensions of the span: the largest number of different inputs in it.

    Returns:
        Token ids of each text; none if too many tokens are near for the span to be informative.
    """
    for near in NEAR:
        tokens, positions = np.nonzero(distance < near)
        if len(np.unique(tokens)) <= rank:
            break
    else:
        return []
    order = np.argsort(distance[tokens, positions], kind="stable")
    candidates = np.stack([tokens, positions], axis=1)[order].tolist()
    chosen: dict[int, list[int]] = {}
    known: set[int] = set()
    for again in (False, True):
        for token, position in candidates:
            there = chosen.setdefault(position, [])
            room = len(there) < batch and sum(map(len, chosen.values())) < rank
            if token not in there and room and (again or token not in known):
                there.append(token)
                known.add(token)
    by_position = [there for _, there in sorted(chosen.items())]
    texts = ([there[n] for there in by_position if n < len(there)] for n in range(batch))
    return [text for text in texts if text]
