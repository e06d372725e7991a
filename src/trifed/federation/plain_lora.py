"""Size of plain LoRA's messages: the measure that the bytes of every method are compared with."""

from __future__ import annotations

from trifed.adapters.settings import AdapterSettings
from trifed.common.dict_merge import deep_difference
from trifed.config.settings import Bits, WireSettings
from trifed.federation.compression import make_compression
from trifed.methods.base import Method


def plain_lora_settings(method: Method, settings: AdapterSettings) -> AdapterSettings:
    """Return the adapter settings that `fedavg-lora` has in the place of a run's method.

    A setting with the method's own default gets the common default: rank 8 in the place of the 32 of `own-prior`.

    Args:
        method: The run's method.
        settings: The run's adapter settings.
    """
    given = settings.model_dump(exclude_none=True)
    return AdapterSettings(**deep_difference(given, method.defaults.get("adapter", {})))


def plain_lora_bytes(values: int, bits: Bits) -> int:
    """Return the bytes of plain LoRA's A, B and head in a message, without the envelope.

    The values count as one tensor. Each further tensor adds at most two bytes, for a step size, and none if the
    number of values in each tensor is a multiple of a block.

    Args:
        values: Number of values in A, B and head.
        bits: Bits a value.
    """
    return sum(make_compression((("values", (values,)),), WireSettings(bits=bits)).sizes.values())
