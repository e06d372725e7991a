"""Capped averaging of B: no client has more than a given share of the average.

An example in the documentation. It applies the cap of robust aggregation rules to example counts.

Trains A, B and the head. Sends B. The server averages B in proportion to examples, capped. A and the head stay
with the client. LayerNorms stay frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from pydantic import Field

from trifed.methods.base import Method, Options, ServerContext, State, Upload, average, is_factor, is_head


class CappedOptions(Options):
    """Options of the capped average."""

    most: float = Field(0.5, gt=0, le=1, description="Largest share of the examples that one client may have.")


def _aggregate(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """Average B: mean = Σ w_j B_j, shape (n_values,), with w_j ∝ min(n_j, most · Σ n)."""
    limit = cast(CappedOptions, options).most * sum(upload.examples for upload in uploads)
    counts = [min(upload.examples, max(1, int(limit))) for upload in uploads]
    return average(context, state, uploads, counts)


METHOD = Method(
    name="capped-lora",
    citation="an example of the documentation",
    adapter="lora",
    trains=lambda name: is_factor(name) or is_head(name),
    sends=lambda name: ".lora_B." in name,
    evaluated_model="trained",
    options=CappedOptions,
    aggregate=_aggregate,
)
