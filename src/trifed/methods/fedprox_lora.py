"""FedProx on plain LoRA: federated averaging with a proximal term that pulls each client to the common model.

Li, Sahu, Zaheer, et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020 (arXiv 1812.06127).

Trains A, B and the head on loss + μ/2 ‖θ − θ̄‖², θ̄ being what was received. Sends all of them. The server
averages by example count and sends the one average back. LayerNorms stay frozen.
"""

from __future__ import annotations

from typing import cast

from pydantic import Field

from trifed.methods.base import Method, Options, Proximal, is_factor, is_head


class FedProxOptions(Options):
    """Option of the proximal term."""

    mu: float = Field(
        0.01, ge=0, allow_inf_nan=False, description="μ, the strength of the pull to the common model."
    )


def _proximal(options: Options) -> Proximal:
    return Proximal(strength=cast(FedProxOptions, options).mu)


METHOD = Method(
    name="fedprox-lora",
    citation="Li et al., FedProx, MLSys 2020, arXiv 1812.06127",
    adapter="lora",
    trains=lambda name: is_factor(name) or is_head(name),
    sends=lambda name: is_factor(name) or is_head(name),
    options=FedProxOptions,
    proximal=_proximal,
)
