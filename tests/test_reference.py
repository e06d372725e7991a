"""The committed reference says what the docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trifed
from trifed.methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY / "docs" / "reference"


def pages(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}


def test_the_committed_reference_is_up_to_date(tmp_path):
    pytest.importorskip("griffe", reason="griffelib is not installed; it comes with the dev extra")
    script = REPOSITORY / "docs" / "generate.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    made, committed = pages(tmp_path), pages(REFERENCE)
    assert made.keys() == committed.keys()
    stale = [name for name in made if made[name] != committed[name]]
    assert stale == [], "run `make docs` and commit docs/reference"


def test_everything_public_has_its_place():
    found = pages(REFERENCE)
    for name in trifed.__all__:
        if not name.startswith("__"):
            assert f"\n## {name}\n" in found["trifed.md"]
    for name in METHODS:
        assert f"\n## {name}\n" in found["methods.md"]
