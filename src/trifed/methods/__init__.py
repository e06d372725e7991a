"""Federated methods, one file each, and the parts that any of them can be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trifed.common.deprecated_names import renamed_attribute
from trifed.methods.aggregation import AggregationSettings
from trifed.methods.base import Method, Options, ServerContext, State, Upload
from trifed.methods.personalization import PersonalizationSettings, compose
from trifed.methods.registry import (
    METHODS,
    ORIGINS,
    code_hash,
    load_method_file,
    load_methods_from_outside,
    register_method,
    unknown_method,
    use_method_files,
)

__all__ = [
    "METHODS",
    "ORIGINS",
    "AggregationSettings",
    "Method",
    "Options",
    "PersonalizationSettings",
    "ServerContext",
    "State",
    "Upload",
    "code_hash",
    "compose",
    "load_method_file",
    "register_method",
    "unknown_method",
    "use_method_files",
]

load_methods_from_outside()

if not TYPE_CHECKING:  # or mypy would accept any name

    def __getattr__(name: str) -> Any:
        return renamed_attribute(__name__, name)
