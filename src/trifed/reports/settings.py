"""All settings of a run with their defaults and meanings, read from the configuration's own classes."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.table import Table

from trifed.config.run import MethodSettings, RunConfig
from trifed.methods import METHODS


def render_settings(pattern: str = "") -> Table:
    """Render one row for each setting: dotted name, default, meaning; methods' own options come last.

    Args:
        pattern: Only the settings with this text in their name or meaning, in capitals or not.
    """
    table = Table(title="Settings, for TOML and --set", title_justify="left", show_lines=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=18)
    table.add_column("meaning")
    rows = list(_rows(RunConfig, ""))
    rows += _options()
    for name, default, meaning in rows:
        if pattern.lower() in f"{name} {meaning}".lower():
            table.add_row(name, default, meaning)
    return table


def _options() -> Iterator[tuple[str, str, str]]:
    """Yield name, default and meaning of each option of a method, with the methods that have it."""
    owners: dict[str, dict[str, list[str]]] = {}
    defaults: dict[str, dict[str, list[str]]] = {}
    for method in METHODS.values():
        for name, default, meaning in _rows(method.options, "method."):
            owners.setdefault(name, {}).setdefault(meaning, []).append(method.name)
            defaults.setdefault(name, {}).setdefault(default, []).append(method.name)
    for name, known in defaults.items():
        several = [f"{default} ({', '.join(of)})" for default, of in known.items()]
        meanings = (f"{', '.join(of)}: {meaning}" for meaning, of in owners[name].items())
        yield name, ", ".join(several if len(several) > 1 else known), " ".join(meanings)


def setting_names() -> list[str]:
    """Return the dotted names of all settings, without the options of single methods."""
    return [name for name, *_ in _rows(RunConfig, "")]


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if inner is MethodSettings:
            yield "method.name", MethodSettings().name, f"one of {', '.join(METHODS)}"
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{prefix}{name}.")
        else:
            default = "needed" if field.default is PydanticUndefined else str(field.default)
            yield prefix + name, "-" if default == "None" else default, field.description or ""
            tables = [part for part in get_args(inner) if isinstance(part, type) and issubclass(part, BaseModel)]
            if len(tables) == 1 and get_origin(inner) is dict:  # a table for each name
                yield from _rows(tables[0], f"{prefix}{name}.NAME.")
            elif len(tables) == 1 and isinstance(inner, UnionType):  # a table that may be left out
                yield from _rows(tables[0], f"{prefix}{name}.")
