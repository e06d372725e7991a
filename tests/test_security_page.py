"""Each promise of docs/promises.md names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "promises.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_promise_names_tests_that_exist():
    promises = PAGE.splitlines()
    rows = [line for line in promises if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 25 and all(TEST.search(row) for row in rows)
    for file, name in TEST.findall(PAGE):
        module = ast.parse((REPOSITORY / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, (file, name)
    assert PAGE.count("::") == len(TEST.findall(PAGE))
