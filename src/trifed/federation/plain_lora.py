"""Size of plain LoRA's messages: the measure that the bytes of every method are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trifed.config.settings import Bits, WireSettings
from trifed.federation.compression import block_starts, make_compression
from trifed.federation.events import Event
from trifed.federation.messages import Header
from trifed.federation.sealed.rules import SumTerms, placeholder_keys


def plain_lora_bytes(values: int, bits: Bits) -> int:
    """Return the bytes of plain LoRA's A, B and head in a message, without the envelope.

    The values count as one tensor. Each further tensor adds at most two bytes, for a step size, and none if the
    number of values in each tensor is a multiple of a block.

    Args:
        values: Number of values in A, B and head.
        bits: Bits a value.
    """
    return sum(make_compression((("values", (values,)),), WireSettings(bits=bits)).sizes.values())


def plain_lora_traffic(
    events: Sequence[Event], values: int, bits: Bits, envelope: int, noised_sums: bool = False
) -> int:
    """Return all bytes of plain federated LoRA, up and down, for the participation of a run, in the run's form.

    One message goes up and one down for each training. In a sealed run the uploads are parts of the run's own
    sums, with the bits that a number had in each of them; a client in no sum sends nothing in that round.

    Args:
        events: The run's log.
        values: Number of values in A, B and head; 0 if it is not known, which gives 0 bytes.
        bits: Bits a value in the run's messages; of a sealed run, in its downloads.
        envelope: Bytes of a message beside its values.
        noised_sums: Whether the sums of a sealed run have noise.
    """
    if not values:
        return 0
    trained = len([event for event in events if event["event"] == "trained"])
    message = plain_lora_bytes(values, bits) + envelope
    if not any(event["event"] in ("sum", "no sum") for event in events):
        return 2 * trained * message
    total = trained * message
    for event in events:
        if event["event"] == "sum" and event["round"]:
            clients: list[str] = event["clients"]
            total += len(clients) * (envelope + _sealed_bytes(values, clients, event["bits"], noised_sums))
    return total


def _sealed_bytes(values: int, clients: Sequence[str], bits: int, noised: bool) -> int:
    """Return the bytes of a client's part of a sum, without its envelope, and of the terms of the sum.

    Args:
        values: Number of values in A, B and head, which count as one tensor.
        clients: Names of the sum's clients.
        bits: Bits of a number in the sum.
        noised: Whether the sum has noise; without it each block has two bytes for its magnitude and for its step.
    """
    blocks = 0 if noised else len(block_starts((("values", (values,)),)))
    steps = np.zeros(blocks, np.float16)
    terms = placeholder_keys(SumTerms(range(len(clients)), steps), clients)
    return -(-values * bits // 8) + 2 * blocks + len(terms.encode(Header("terms", "0" * 12, "0" * 16, 1, 0, 0)))
