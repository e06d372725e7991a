"""Merge and compare nested dictionaries of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def deep_merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested `values`, overwritten by nested `changes`."""
    inner = {
        name: deep_merge(values[name], change)
        for name, change in changes.items()
        if isinstance(change, Mapping) and isinstance(values.get(name), Mapping)
    }
    return {**values, **changes, **inner}


def deep_difference(values: Mapping[str, Any], same: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested `values` without those that are equal in nested `same`."""
    return {
        name: deep_difference(value, same[name])
        if isinstance(value, Mapping) and isinstance(same.get(name), Mapping)
        else value
        for name, value in values.items()
        if name not in same or same[name] != value
    }
