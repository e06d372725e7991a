"""Bytes of a client in a round of sealed sums, from names and shapes alone."""

from __future__ import annotations

import math

import numpy as np

from trifed.federation.compression import Compression, block_starts
from trifed.federation.context import RunContext
from trifed.federation.sealed.rules import KEY, SIGNATURE, SumRules, SumTerms, sizes_of_part
from trifed.federation.sealed.upload import PENDING, SealedUploads
from trifed.methods.base import Method
from trifed.methods.packing import Layout
from trifed.methods.sealed import cannot_seal

INDEX, HOLDERS, STEP = 4, 2, 2
"""Bytes of a client's index, of the number of a label's holders, and of a step, in the terms of a sum."""


def sealed_bytes(
    method: Method, layout: Layout, downloads: Compression, clients: int, levels: int = 1
) -> tuple[int, int] | None:
    """Return the bytes up and down of a client in a round, without envelopes; None if the method cannot be sealed.

    Args:
        method: The method.
        layout: Names and shapes of what it sends.
        downloads: Encoding of its downloads.
        clients: Clients of the sum.
        levels: L of the sum.
    """
    if cannot_seal(method):
        return None
    by_label = method.defaults.get("aggregation", {}).get("weights") == "label-rows"
    rules = SumRules(at_least=2, levels=levels, learning_rate=1.0, by_label=by_label)
    labels = rules.labels(layout)
    terms = (
        STEP * len(block_starts(rules.stepped(layout))) + HOLDERS * labels + (INDEX + KEY + SIGNATURE) * clients
    )
    terms += INDEX * clients if labels else 0
    return sum(sizes_of_part(layout, clients, rules).values()), sum(downloads.sizes.values()) + terms


def bytes_of_part(context: RunContext, clients: int) -> int:
    """Return the bytes of a client's part of a sum, with its envelope; 0 if the run is not sealed."""
    rules, layout = context.sums, context.compression.layout
    if rules is None:
        return 0
    blocks, labels = len(block_starts(rules.stepped(layout))), rules.labels(layout)
    uploads = SealedUploads(context.compression, rules, np.zeros(labels, bool))
    size = sum(math.prod(shape) for _, shape in layout)
    sum_terms = SumTerms(range(clients), np.ones(blocks, np.float16), np.zeros(labels, np.uint16))
    header = context.header("upload", 1, 0, 1)
    return len(uploads.send(header, sum_terms, {PENDING: np.zeros(size, np.float32)}, noise=np.zeros)[0])
