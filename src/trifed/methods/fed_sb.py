"""Fed-SB: cores between shared projections that come from the clients' first gradient, averaged exactly.

Singhal, Ponkshe, Vartak, Varshney, Vepakomma, "Fed-SB: A Silver Bullet for Extreme Communication Efficiency and
Performance in (Private) Federated LoRA Fine-Tuning" (arXiv 2502.15436); the start is LoRA-SB's, Ponkshe et al.,
"Initialization using Update Approximation is a Silver Bullet" (arXiv 2411.19557).

Before round 1 every client sends the gradient of the adapted layers' frozen weights, once and in full:
(d_out, d_in) numbers a layer. The server averages them by example count, takes AdamW's first full step
ΔW = −η sign(g), and from its SVD the projections B = U_r, A = V_rᵀ, with C = Σ_r. A and B stay frozen. Trains C
and the head. Sends both. The server averages by example count, exactly as in `fed-xs`. LayerNorms stay frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trifed.methods.base import Gradient, Method, Options, is_core, is_head
from trifed.methods.packing import Tensors


class FedSbOptions(Options):
    """Options of the start."""

    first_step: float = Field(
        1e-4,
        gt=0,
        allow_inf_nan=False,
        description="η, the size of the step whose SVD gives A, B and the start of C.",
    )


def _shared_projections(options: Options, gradients: Sequence[Gradient], rank: int) -> Tensors:
    """A (r, d_in), B (d_out, r) and C (r, r) of every layer."""
    eta = cast(FedSbOptions, options).first_step
    total = sum(gradient.examples for gradient in gradients)
    shared_projections: Tensors = {}
    for layer in gradients[0].layers:
        mean = sum(g.examples / total * g.layers[layer].astype(np.float64) for g in gradients)
        for part, values in zip("ABC", _split(-eta * np.sign(mean), rank), strict=True):
            shared_projections[f"{layer}.lora_{part}.weight"] = values.astype(np.float32)
    return shared_projections


def _split(step: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float64], ...]:
    """V_rᵀ, U_r and Σ_r, whose product B C A is the best rank-r approximation of `step`, (d_out, d_in)."""
    left, values, right = np.linalg.svd(step, full_matrices=False)
    return right[:rank], left[:, :rank], np.diag(values[:rank])


METHOD = Method(
    name="fed-sb",
    citation="Singhal et al., Fed-SB, arXiv 2502.15436",
    adapter="public-frames",
    trains=lambda name: is_core(name) or is_head(name),
    sends=lambda name: is_core(name) or is_head(name),
    options=FedSbOptions,
    shared_projections=_shared_projections,
)
