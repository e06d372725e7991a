"""DP-SGD: training steps that protect each example, over all parameters that train.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016 (arXiv 1607.00133). A step samples each example
independently with the same probability, clips the gradient of each to L2 norm `clip` over all parameters that
train, adds noise of z · clip to every number of their sum, and divides by a public number of examples. Optimiser,
proximal term and learning rate work on that gradient alone. An example adds at most `clip` to the sum, so a step
is a Gaussian release of sensitivity `clip` on a Poisson sample.

The sample of examples must be as secret as the noise, so it comes from the same source, never from the run's seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from trifed.federation.training.batches import in_chunks
from trifed.federation.training.device_placement import autocast
from trifed.federation.training.local_training import Examples
from trifed.federation.training.stack import Stack, can_stack
from trifed.privacy import Noise
from trifed.tasks import TaskModel
from trifed.tasks.base import Batch

AT_ONCE = 32
"""Examples whose gradients are computed in one pass."""


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
        self, model: TaskModel, named: Mapping[str, nn.Parameter], examples: Examples, precision: torch.dtype
    ) -> Tensor | None:
        """Set the gradient of the parameters `named`; return the sample's mean loss, None for an empty sample."""
        # Φ of a normal number is uniform, so one source of randomness serves sample and noise.
        sample = np.flatnonzero(ndtr(self.noise(len(examples.data))) < self.rate)
        sums = [torch.zeros_like(param, dtype=torch.float32) for param in named.values()]
        losses = []
        for rows in in_chunks(sample, AT_ONCE if can_stack(model, named) else 1):
            loss, gradients = example_gradients(model, named, examples.batch(rows), precision)
            losses.append(loss)
            for total, clipped in zip(sums, self._clipped(gradients), strict=True):
                total.add_(clipped)
        for param, total in zip(named.values(), sums, strict=True):
            drawn = torch.from_numpy(self.noise(total.numel()).astype(np.float32)).reshape(total.shape)
            noise = self.multiplier * self.clip * drawn.to(total.device)
            param.grad = ((total + noise) / self.divisor).to(param.dtype)
        return torch.cat(losses).mean() if losses else None

    def _clipped(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the sum of n examples' clipped gradients; one that is not finite is left out.

        Args:
            gradients: (n, ...) of each parameter.
        """
        squares = [gradient.flatten(1).double().square().sum(1) for gradient in gradients]
        norms = torch.stack(squares).sum(0).sqrt()
        finite = norms.isfinite()
        factors = torch.where(finite, (self.clip / norms).clamp(max=1), 0).float()
        return [
            torch.tensordot(factors, gradient.where(finite.view(-1, *[1] * (gradient.dim() - 1)), 0), 1)
            for gradient in gradients
        ]


def example_gradients(
    model: TaskModel, named: Mapping[str, nn.Parameter], batch: Batch, precision: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of each of n examples, (n,), and its gradient for each parameter, (n, ...), float32.

    Every example is treated like a client of its own in one stack, so one pass gives all gradients.
    """
    rows, device = len(batch["labels"]), batch["labels"].device
    if rows == 1:  # any model can do that
        with autocast(device, precision):
            losses = model.loss(batch)[None]
        found = torch.autograd.grad(losses[0], list(named.values()), allow_unused=True)
        gradients = [None if gradient is None else gradient[None] for gradient in found]
    else:
        stacked = {n: p.detach().expand(rows, *p.shape).clone().requires_grad_() for n, p in named.items()}
        parts = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in range(rows)]
        with Stack(model, named, stacked).installed(), autocast(device, precision):
            outputs = model.outputs(batch)
            losses = torch.stack([model.loss_of(outputs[row : row + 1], part) for row, part in enumerate(parts)])
        gradients = list(torch.autograd.grad(losses.sum(), list(stacked.values()), allow_unused=True))
    return losses.detach(), [
        torch.zeros(rows, *param.shape, device=device) if gradient is None else gradient.float()
        for param, gradient in zip(named.values(), gradients, strict=True)
    ]
