from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteRows = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Write rows as JSON lines into the test's folder."""

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def topics(write_rows: WriteRows) -> Path:
    """240 rows, 4 labels of 60, 3 sites of 80: `text`, `pair`, `label`, `site`."""
    rows = [
        {"text": f"text {i}", "pair": f"pair {i}", "label": f"topic-{i % 4}", "site": f"site {i % 3}"}
        for i in range(240)
    ]
    return write_rows("topics.jsonl", rows)


@pytest.fixture
def real_data() -> Path:
    """Return the folder of real data sets; skip where there is none."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("TRIFED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (set TRIFED_DATA to its folder)")
    return folder
