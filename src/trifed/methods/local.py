"""Separate training: every client fine-tunes a plain LoRA adapter and a head on its own data, and sends nothing.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv 2106.09685).

Trains A, B and the head. Sends nothing. Averages nothing. It is what every exchange has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trifed.methods.base import Method, Options, ServerContext, State, Upload, is_factor, is_head, start_empty
from trifed.methods.packing import Vector


def _aggregate(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    return state


def _download(state: State, client: int) -> Vector | None:
    return None


ALONE = "alone"
"""Name of a run's method without its exchange."""


def alone(method: Method) -> Method:
    """Return a method with the same adapter, training and client parts, of which nothing is sent.

    The difference to it is what sharing is worth. The model that is used is the one just trained: without a
    received one there is nothing to interpolate with, and nothing that a proximal term pulls to.
    """
    return replace(
        method,
        name=ALONE,
        sends=lambda name: False,
        receives=None,
        evaluated_model="trained",
        interpolation=1.0,
        chooses_interpolation=False,
        start=start_empty,
        aggregate=_aggregate,
        download=_download,
        summarise=None,
        proximal=None,
        on_membership_change=None,
        with_aggregation=None,
    )


METHOD = Method(
    name="local",
    citation="Hu et al., LoRA, ICLR 2022, arXiv 2106.09685",
    adapter="lora",
    trains=lambda name: is_factor(name) or is_head(name),
    sends=lambda name: False,
    evaluated_model="trained",
    aggregate=_aggregate,
    download=_download,
)
