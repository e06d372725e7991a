"""The methods, one file each. Adding one means adding a file here that defines `METHOD`; nothing else changes."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from trifed.methods.base import Method, Options, ServerContext, State, Upload


def _collect() -> dict[str, Method]:
    found = {}
    for module in iter_modules(__path__):
        method = getattr(import_module(f"{__name__}.{module.name}"), "METHOD", None)
        if isinstance(method, Method):
            found[method.name] = method
    return dict(sorted(found.items()))


METHODS: dict[str, Method] = _collect()

__all__ = ["METHODS", "Method", "Options", "ServerContext", "State", "Upload"]
