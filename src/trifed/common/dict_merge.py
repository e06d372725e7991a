"""Merge and compare nested dictionaries of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def deep_merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested `values` with nested `changes` in their place."""
    result = dict(values)
    for name, change in changes.items():
        inner = result.get(name)
        if isinstance(inner, Mapping) and isinstance(change, Mapping):
            change = deep_merge(inner, change)
        result[name] = change
    return result


def deep_difference(values: Mapping[str, Any], same: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested `values` without those that are equal in nested `same`."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(same.get(name), Mapping):
            kept[name] = deep_difference(value, same[name])
        elif name not in same or same[name] != value:
            kept[name] = value
    return kept
