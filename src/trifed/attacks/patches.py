r"""Images from the first layer of a vision transformer, in closed form: exact where it applies, without a search.

A patch $x_p$ enters as $u_p = W x_p + c_p$, with $c_p$ of its position. For a single image there are two ways.
First, the gradients of the positions are $g_p$ and that of $W$ is $\sum_p g_p x_p^\top$: linear equations (Lu et
al., "APRIL", CVPR 2022, arXiv 2112.14087). Second, the gradient of a layer behind the first LayerNorm spans its
inputs, $G^\top Z$, as for texts: with $N$ orthogonal to it, $N^\top z_p = 0$ for
$z_p = \gamma (u_p - \bar u_p)/\sigma_p + \beta$ is linear in $x_p/\sigma_p$ and $1/\sigma_p$. It has one solution
where $N$ has more columns than a patch has numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trifed.attacks.span import find_modules, layer_name, matrices, record_calls
from trifed.federation.training.shared_model import SharedModel
from trifed.methods.packing import Tensors

UNIQUE = 1e-9
"""A system has more than one solution if it has singular values below this share of the largest."""
AGREEMENT = 0.05
"""Largest relative difference between a solution's σ_p and that of the patch it gives."""


@dataclass(frozen=True)
class PatchEmbedding:
    """The part of a model in which images enter.

    Attributes:
        side: Height and width of an image.
        patches: A convolution whose windows do not overlap.
        places: What is added to its output at each position, (p, d).
        norm: The LayerNorm behind it.
        layers: Plain names of the layers that read its output and whose updates are sent.
        inputs: Number of inputs of these layers for one image: positions and what the model adds to them.
    """

    side: int
    patches: nn.Conv2d
    places: Tensor
    norm: nn.LayerNorm
    layers: list[str]
    inputs: int

    def image(self, patches: Tensor) -> Tensor:
        """Put patches (p, values of each) together to an image, (3, side, side)."""
        stride: Any = self.patches.stride
        return functional.fold(patches.T[None].float(), (self.side, self.side), stride, stride=stride)[0]


def find_patch_embedding(shared_model: SharedModel, side: int) -> PatchEmbedding | None:
    """Find the patch embedding of the loaded model.

    None if the first LayerNorm behind it reads something else than a patch plus a constant of its position.
    """
    convolutions = (m for m in shared_model.base.model.modules() if isinstance(m, nn.Conv2d))
    patches = next((m for m in convolutions if m.in_channels == 3), None)
    if patches is None or patches.stride != patches.kernel_size or patches.groups > 1:
        return None
    shades = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(shared_model.device)
    watched = [
        m
        for m in shared_model.model.modules()
        if isinstance(m, nn.LayerNorm | nn.Linear) or hasattr(m, "base_layer")
    ]
    dark, random = (
        record_calls(shared_model, watched, {"pixel_values": image})
        for image in (torch.zeros_like(shades), shades)
    )
    norm = next((m for m in random if isinstance(m, nn.LayerNorm)), None)
    if norm is None:
        return None
    stride: Any = patches.stride
    moved = functional.unfold(shades, stride, stride=stride)[0].T @ patches.weight.detach().flatten(1).T
    inputs, outputs = random[norm]
    places = dark[norm][0][0, -len(moved) :]
    if inputs.ndim != 3 or not torch.allclose(inputs[0, -len(moved) :] - places, moved, atol=1e-4):
        return None
    sent = find_modules(shared_model, {layer_name(name) for name, _ in shared_model.layout})
    readers = [m for m, (read, _) in random.items() if m is not norm and torch.equal(read, outputs)]
    layers = [sent[m] for m in readers if m in sent]
    return PatchEmbedding(side, patches, places.double(), norm, layers, inputs.shape[1])


def image_from_embedding(shared_model: SharedModel, entry: PatchEmbedding, observed: Tensors) -> Tensor | None:
    """Solve for an image, (3, side, side), in the gradients of patches and positions; None if not sent."""
    name = next((n for n, param in shared_model.parameters.items() if param is entry.patches.weight), "")
    count, width = entry.places.shape
    # By name too: a layer's matrix can have the same shape.
    positions = (values for n, values in observed.items() if "position" in n and values.ndim > 1)
    added = next((v for v in positions if v.shape[-1] == width and count <= v.shape[-2] < 2 * count), None)
    if name not in observed or added is None or not np.any(observed[name]) or not np.any(added):
        return None
    places = added.reshape(-1, width)[-count:].astype(np.float64)
    solution = np.linalg.lstsq(places.T, observed[name].reshape(width, -1).astype(np.float64), rcond=1e-7)[0]
    return entry.image(torch.from_numpy(solution))


def image_from_layers(shared_model: SharedModel, entry: PatchEmbedding, observed: Tensors) -> Tensor | None:
    """Solve for an image, (3, side, side), in the row space of the layer that determines most of its patches.

    None if no layer has room for all inputs of an image and for the unknowns of a patch beside them.
    """
    image, most = None, 0.5
    for values, through in matrices(shared_model, observed, entry.layers):
        if np.any(values.numpy()):
            # Not from where singular values look like rounding: those of unimportant positions are as small.
            complement = torch.linalg.svd(values)[2][entry.inputs :].T.to(shared_model.device)
            patches, share = _solve_patches(entry, complement, through)
            if share > most:
                image, most = entry.image(patches), share
    return image


def _solve_patches(entry: PatchEmbedding, complement: Tensor, through: Tensor | None) -> tuple[Tensor, float]:
    """Return patches (p, values of each) whose inputs are orthogonal to `complement`, and the share that is sure.

    Args:
        entry: The model's patch embedding.
        complement: Vectors orthogonal to all inputs, (width, k).
        through: Maps inputs to that width, (d, width); None for the identity.
    """
    norm, weight = entry.norm, entry.patches.weight.detach().flatten(1).double()  # (d, values of a patch)
    basis = complement if through is None else through.double() @ complement  # (d, k)
    centred = norm.weight.detach().double()[:, None] * basis
    centred = (centred - centred.mean(0)).T  # (k, d): LayerNorm takes the mean of an input away
    aim = -basis.T @ norm.bias.detach().double()
    if len(centred) <= weight.shape[1]:
        return weight, 0.0
    patches, sure = [], []
    for place in entry.places:
        system = torch.cat([centred @ weight, (centred @ place)[:, None]], 1)
        left, sizes, right = torch.linalg.svd(system, full_matrices=False)
        solved = right.T @ ((left.T @ aim) / sizes.clamp_min(UNIQUE * sizes[0]))
        patch = solved[:-1] / solved[-1]
        spread = (weight @ patch + place).std(correction=0)
        sure.append(bool(abs(spread * solved[-1] - 1) < AGREEMENT))
        patches.append(patch)
    return torch.stack(patches), float(np.mean(sure))
