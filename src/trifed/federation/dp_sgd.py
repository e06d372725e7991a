"""DP-SGD: training steps that protect each example, over all parameters that train.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (arXiv 1607.00133). A step samples each example
independently with the same probability, clips the gradient of each to L2 norm `clip` over all parameters that
train, adds noise of z · clip to every number of their sum, and divides by a public number of examples. Optimiser,
proximal term and learning rate work on that gradient alone. An example adds at most `clip` to the sum, so a step
is a Gaussian release of sensitivity `clip` on a Poisson sample.

The sample of examples must be as secret as the noise, so it comes from the same source, never from the run's seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from trifed.federation.device_placement import autocast
from trifed.privacy import Noise
from trifed.tasks import Encoded, TaskModel


@dataclass(frozen=True)
class DpSgd:
    """The gradient of one step.

    Attributes:
        clip: largest L2 norm of an example's gradient.
        multiplier: z, standard deviation of the noise in units of `clip`.
        rate: probability of an example to be sampled.
        divisor: public number that the noised sum is divided by.
        noise: source of noise and samples.
    """

    clip: float
    multiplier: float
    rate: float
    divisor: int
    noise: Noise

    def __call__(
        self, model: TaskModel, named: Mapping[str, nn.Parameter], data: Encoded, precision: torch.dtype
    ) -> Tensor:
        """Set the gradient of the parameters `named`; return the mean loss of the sample, NaN if it is empty."""
        params = list(named.values())
        sums = [torch.zeros_like(param, dtype=torch.float32) for param in params]
        # Φ of a normal number is uniform, so one source of randomness serves sample and noise.
        sample = np.flatnonzero(ndtr(self.noise(len(data))) < self.rate)
        losses = [self._add(model, params, data, int(row), precision, sums) for row in sample]
        for param, total in zip(params, sums, strict=True):
            drawn = torch.from_numpy(self.noise(total.numel()).astype(np.float32)).reshape(total.shape)
            noise = self.multiplier * self.clip * drawn.to(total.device)
            param.grad = ((total + noise) / self.divisor).to(param.dtype)
        return torch.stack(losses).mean() if losses else torch.tensor(torch.nan)

    def _add(
        self, model: TaskModel, params: list[nn.Parameter], data: Encoded, row: int, precision: torch.dtype,
        sums: list[Tensor],
    ) -> Tensor:  # fmt: skip
        """Add one example's clipped gradient to `sums`; return the example's loss."""
        device = params[0].device
        with autocast(device, precision):
            loss = model.loss(data.batch(np.array([row]), device))
        gradients = [
            (total, gradient.float())
            for total, gradient in zip(sums, torch.autograd.grad(loss, params, allow_unused=True), strict=True)
            if gradient is not None
        ]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for _, gradient in gradients))
        if math.isfinite(norm):  # a gradient that is not finite is left out
            for total, gradient in gradients:
                total.add_(gradient, alpha=min(1.0, self.clip / norm) if norm else 0.0)
        return loss.detach()
