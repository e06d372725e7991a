"""Plain LoRA beside a method: the adapter whose bytes those of every method are compared with."""

from __future__ import annotations

from trifed.adapters.settings import AdapterSettings
from trifed.common.dict_merge import deep_difference
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
