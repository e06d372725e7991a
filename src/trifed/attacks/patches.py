r"""Images from the first layer of a vision transformer, in closed form: no search, where it applies it is exact.

A patch $x_p$ enters as $u_p = W x_p + c_p$, with $c_p$ of its place. Of one image, first, the gradients of the
places are $g_p$ and that of $W$ is $\sum_p g_p x_p^\top$: linear equations (Lu et al., "APRIL", CVPR 2022, arXiv
2112.14087). Second, the gradient of a layer behind the first LayerNorm spans its inputs, $G^\top Z$, as for
texts: with $N$ what is orthogonal to it, $N^\top z_p = 0$ for $z_p = \gamma (u_p - \bar u_p)/\sigma_p + \beta$ is
linear in $x_p/\sigma_p$ and $1/\sigma_p$. It has one solution where $N$ has more columns than a patch has numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trifed.attacks.span import matrices
from trifed.federation.shared_model import SharedModel, plain_name
from trifed.methods.packing import Tensors

UNIQUE = 1e-9
"""Singular values of a system under this share of the largest leave more than one answer."""
AGREE = 0.05
"""How far the spread of what was found may be from the spread that was found."""


@dataclass(frozen=True)
class Opening:
    """Where images enter a model.

    `patches`: a convolution that does not overlap; `places`: what is added to what it makes, (p, d);
    `norm`: the LayerNorm behind it; `layers`: plain names of those that travel and read it; `inputs`: of these
    layers for one image, places and what the model adds to them.
    """

    patches: nn.Conv2d
    places: Tensor
    norm: nn.LayerNorm
    layers: list[str]
    inputs: int

    def image(self, found: Tensor, side: int) -> Tensor:
        """From patches (p, values of each) to an image, (3, side, side)."""
        stride: Any = self.patches.stride
        return functional.fold(found.T[None].float(), (side, side), stride, stride=stride)[0]

    @property
    def weight(self) -> Tensor:
        """(d, values of a patch), in float64."""
        return self.patches.weight.detach().flatten(1).double()


def opening_of(shared_model: SharedModel, side: int) -> Opening | None:
    """The loaded model's opening; None where what enters is not a patch and its place, through one LayerNorm."""
    convolutions = [
        m for m in shared_model.base.model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3
    ]
    if not convolutions or any(p.stride != p.kernel_size or p.groups > 1 for p in convolutions[:1]):
        return None
    patches, device = convolutions[0], shared_model.device
    shades = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    dark, random = (_heard(shared_model, image) for image in (torch.zeros_like(shades), shades))
    stride: Any = patches.stride
    moved = functional.unfold(shades, stride, stride=stride)[0].T @ patches.weight.detach().flatten(1).T
    for norm, (inputs, outputs) in random.items():
        if not isinstance(norm, nn.LayerNorm):
            continue
        places = dark[norm][0][0, -len(moved) :]
        if inputs.ndim != 3 or not torch.allclose(inputs[0, -len(moved) :] - places, moved, atol=1e-4):
            return None
        travels = {name.split(".lora_")[0].removesuffix(".weight") for name, _ in shared_model.layout}
        named = {module: plain_name(name) for name, module in shared_model.model.named_modules()}
        readers = [named[m] for m, heard in random.items() if m is not norm and torch.equal(heard[0], outputs)]
        layers = [name for name in readers if name in travels]
        return Opening(patches, places.double(), norm, layers, inputs.shape[1])
    return None


def _heard(shared_model: SharedModel, image: Tensor) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """What went into the model's linear layers and LayerNorms and came out, in the order of the calls."""
    heard: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def hear(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if inputs and isinstance(outputs, Tensor):
            heard.setdefault(module, (inputs[0].detach(), outputs.detach()))

    linear = (nn.LayerNorm, nn.Linear)
    wanted = [m for m in shared_model.model.modules() if isinstance(m, linear) or hasattr(m, "base_layer")]
    handles = [module.register_forward_hook(hear) for module in wanted]
    shared_model.model.eval()
    try:
        with torch.no_grad():
            shared_model.model.features({"pixel_values": image})
    finally:
        for handle in handles:
            handle.remove()
    return heard


def from_embedding(shared_model: SharedModel, opening: Opening, observed: Tensors, side: int) -> Tensor | None:
    """An image, (3, side, side), from the patches' and the places' own gradients; None if none travels."""
    own = {id(param): name for name, param in shared_model.parameters.items()}
    name = own.get(id(opening.patches.weight))
    count, width = opening.places.shape
    # By name too: a layer's matrix can have the same shape.
    shapes = {n: v.shape for n, v in observed.items() if "position" in n and v.ndim > 1}
    added = [n for n, shape in shapes.items() if shape[-1] == width and count <= shape[-2] < 2 * count]
    if name not in observed or not added or not np.any(observed[name]) or not np.any(observed[added[0]]):
        return None
    places = observed[added[0]].reshape(-1, width)[-count:].astype(np.float64)
    found = np.linalg.lstsq(places.T, observed[name].reshape(width, -1).astype(np.float64), rcond=1e-7)[0]
    return opening.image(torch.from_numpy(found), side)


def from_layers(shared_model: SharedModel, opening: Opening, observed: Tensors, side: int) -> Tensor | None:
    """An image, (3, side, side), whose patches lie in the span of a layer, of all the one that says most.

    None where no layer has room: for all inputs of one image and, beside them, for what tells a patch.
    """
    found, most = None, 0.5
    for values, through in matrices(shared_model, observed, opening.layers):
        if np.any(values.numpy()):
            # Not from where singular values look like rounding: those of places that matter little are as small.
            across = torch.linalg.svd(values)[2][opening.inputs :].T.to(shared_model.device)
            patches, sure = _patches(opening, across, through)
            if sure > most:
                found, most = opening.image(patches, side), sure
    return found


def _patches(opening: Opening, across: Tensor, through: Tensor | None) -> tuple[Tensor, float]:
    """Patches (p, values of each) whose inputs are orthogonal to `across`, (width, k); the share that is sure."""
    norm, weight = opening.norm, opening.weight
    basis = across if through is None else through.double() @ across  # (d, k)
    centred = norm.weight.detach().double()[:, None] * basis
    centred = (centred - centred.mean(0)).T  # (k, d): an input is without its mean
    aim = -basis.T @ norm.bias.detach().double()
    found, sure = [], []
    for place in opening.places:
        system = torch.cat([centred @ weight, (centred @ place)[:, None]], 1)
        if len(system) < system.shape[1]:
            return weight, 0.0
        left, sizes, right = torch.linalg.svd(system, full_matrices=False)
        solved = right.T @ ((left.T @ aim) / sizes.clamp_min(UNIQUE * sizes[0]))
        patch = solved[:-1] / solved[-1]
        spread = (weight @ patch + place).std(correction=0)
        sure.append(bool(abs(spread * solved[-1] - 1) < AGREE))
        found.append(patch)
    return torch.stack(found), float(np.mean(sure))
