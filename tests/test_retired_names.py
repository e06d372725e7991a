"""Names that the project once had for things that have names in the field are not used again."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from test_laws import FILES, place, tree

RETIRED = {
    "module": {
        "answer", "audit_blocks", "audit_grids", "audit_panels", "audit_words", "blocks", "controls", "explain",
        "find", "folder_blocks", "frames", "grids", "interface", "life", "loudness", "matching", "member",
        "nested", "node", "noising", "opening", "own_start", "panels", "placing", "private_training",
        "quantise", "records", "roll", "setting", "site", "spending", "standing", "stock", "telling", "temper",
        "terms", "texts", "victim", "wire", "words", "workbench",
    },
    "class": {
        "Matcher", "Member", "Node", "Pull", "Setting", "Site", "Some", "Standing", "Terms", "Victim", "Wire",
        "Workbench",
    },
    "function": {
        "frames", "loudness", "noising", "own_start", "placing", "renew", "scored", "spending", "temper",
        "tempered", "workbench",
    },
    "parameter": {
        "bench", "frames", "loudness", "member", "own_start", "renew", "scored", "standing", "temper", "tempered",
        "terms", "victim", "workbench",
    },
}  # fmt: skip
"""Names that the project had for things that have names in the field, by what they may not name any more.

A name that is plain English too is listed for the kind alone for which it is retired.
"""


def names_of(path: Path) -> Iterator[tuple[str, str, int]]:
    """Kind, name and line of everything that a file names."""
    yield "module", path.stem, 1
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            yield "class", node.name, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield "function", node.name.lstrip("_"), node.lineno
        elif isinstance(node, ast.arg):
            yield "parameter", node.arg, node.lineno


def test_no_retired_name_is_used():
    wrong = [
        f"{place(path)}:{line} {kind} {name}"
        for path in FILES
        if place(path) != "common/deprecated_names.py"
        for kind, name, line in names_of(path)
        if name in RETIRED[kind]
    ]
    assert wrong == []
