"""Messages for mistakes in settings: the setting's name, the value, and what was expected."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from trifed.common.errors import nearest


def validation_messages(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Return one message for each setting with a mistake, also if the setting allows several types."""
    messages: dict[str, str] = {}
    for item in error.errors():
        path = [str(part) for part in item["loc"] if not str(part).startswith(("function-", "literal", "list["))]
        name = ".".join(path) or "configuration"
        message = f"{name}: {_problem(item, name, path, root)}"
        if name in messages and EXPECTED in message:
            message = f"{messages[name]} or {message.rpartition(EXPECTED)[2]}"
        messages[name] = message
    return list(messages.values())


def _problem(item: Any, name: str, path: list[str], root: type[BaseModel]) -> str:
    """Return what is wrong with the setting of a dotted name."""
    if item["type"] == "extra_forbidden":
        known = _settings_at(root, path[:-1])
        return f"unknown setting{nearest(path[-1], known)}; known here: {', '.join(known)}"
    if item["type"] == "missing":
        hint = " (the table to read: a file, a folder or a hub name)" if name == "data.source" else ""
        return f"missing, and it has no default{hint}"
    if item["type"] == "value_error":
        return str(item["msg"]).removeprefix("Value error, ")
    return f"got {item['input']!r}{EXPECTED}{_expected(item)}"


EXPECTED = ", expected "

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "list": 'a list, as ["a", "b"]',
    "model": "a table of settings",
    "dict": "a table of settings",
}


def _expected(item: Any) -> str:
    """Return what was expected, from pydantic's description of the mistake."""
    kind, limits = item["type"], item.get("ctx", {})
    if kind == "literal_error":
        options = re.findall("'([^']*)'", limits["expected"])
        near = nearest(item["input"], options) if isinstance(item["input"], str) else ""
        return f"{limits['expected']}{near}"
    if kind == "string_pattern_mismatch":
        return EXAMPLES.get(item["loc"][-1], f"a text that fits {limits['pattern']}")
    for name, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if name in limits:
            return f"{words} {limits[name]}"
    expected = KINDS.get(kind.split("_")[0])
    return expected if expected and "too" not in kind else f"{item['msg'][0].lower()}{item['msg'][1:]}"


EXAMPLES = {
    "name": "letters, digits, '.', '_' and '-', with a letter or digit first",
    "device": "'auto', 'cpu', 'cuda', 'cuda:1' or 'cuda:all'",
}


def _settings_at(root: type[BaseModel], path: list[str]) -> list[str]:
    """Return the names of the settings in the table at a path of names."""
    annotation: Any = root
    for part in path:
        if typing.get_origin(annotation) is dict:  # tables with names of the user's
            annotation = typing.get_args(annotation)[1]
        else:
            model = _model_in(annotation)
            annotation = model.model_fields[part].annotation if model and part in model.model_fields else None
    model = _model_in(annotation)
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
