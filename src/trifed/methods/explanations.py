"""Explanations of the methods, one line each, taken from the first line of a method's file."""

from __future__ import annotations

import sys

from trifed.methods.local import ALONE
from trifed.methods.registry import METHODS


def explanation(name: str) -> str:
    """Return what a method does in one line; empty for one that is not of this package or is not known here."""
    if name == ALONE:
        return (
            "Separate training: the first method with nothing shared, and the same adapter, learning rate and "
            "personalization."
        )
    if name not in METHODS:
        return ""
    modules = [module for key, module in sys.modules.items() if key.startswith("trifed.methods.")]
    own = next((module for module in modules if getattr(module, "METHOD", None) is METHODS[name]), None)
    return " ".join((own.__doc__ or "").partition("\n\n")[0].split()) if own else ""
