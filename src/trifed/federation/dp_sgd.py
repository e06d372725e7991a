"""Training steps that protect each example: DP-SGD, over everything that trains.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (arXiv 1607.00133). A step takes each example by
itself with the same chance, clips the gradient of each to L2 norm `clip` over all parameters that train, adds
noise of z · clip to every number of their sum, and divides by a public number of examples. Optimiser, proximal
term and learning rate work on that gradient alone. An example adds at most `clip` to the sum, so a step is a
Gaussian release of sensitivity `clip` on a Poisson sample.

Which examples are taken must be as secret as the noise: it comes from the same source, never from the run's seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from trifed.federation.training import autocast
from trifed.privacy import Noise
from trifed.tasks import Encoded, TaskModel


@dataclass(frozen=True)
class DpSgd:
    """`multiplier`: z; `rate`: chance of an example to be in a step; `divisor`: what the sum is divided by."""

    clip: float
    multiplier: float
    rate: float
    divisor: int
    noise: Noise

    def __call__(
        self, model: TaskModel, named: Mapping[str, nn.Parameter], data: Encoded, precision: torch.dtype
    ) -> Tensor:
        """Set the gradient of what trains; the mean loss of the examples that were drawn, NaN without any."""
        params = list(named.values())
        sums = [torch.zeros_like(param, dtype=torch.float32) for param in params]
        losses = []
        # Φ of a normal number is uniform: one source of chance for sample and noise.
        for row in np.flatnonzero(ndtr(self.noise(len(data))) < self.rate):
            losses.append(self._add(model, params, data, int(row), precision, sums))
        for param, total in zip(params, sums, strict=True):
            drawn = torch.from_numpy(self.noise(total.numel()).astype(np.float32)).reshape(total.shape)
            noise = self.multiplier * self.clip * drawn.to(total.device)
            param.grad = ((total + noise) / self.divisor).to(param.dtype)
        return torch.stack(losses).mean() if losses else torch.tensor(torch.nan)

    def _add(
        self, model: TaskModel, params: list[nn.Parameter], data: Encoded, row: int, precision: torch.dtype,
        sums: list[Tensor],
    ) -> Tensor:  # fmt: skip
        """Add one example's clipped gradient; its loss."""
        device = params[0].device
        with autocast(device, precision):
            loss = model.loss(data.batch(np.array([row]), device))
        found = torch.autograd.grad(loss, params, allow_unused=True)
        parts = [None if part is None else part.float() for part in found]
        norm = math.sqrt(sum(float(part.double().square().sum()) for part in parts if part is not None))
        if math.isfinite(norm):  # a gradient that ran off says nothing
            for total, part in zip(sums, parts, strict=True):
                if part is not None:
                    total.add_(part, alpha=min(1.0, self.clip / norm) if norm else 0.0)
        return loss.detach()
