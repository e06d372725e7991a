"""Runs of an earlier version, for the tests of commands that read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def kept_runs():
    """The folder of these runs, which tests copy and do not change."""
    return Path(__file__).resolve().parents[1] / "fixtures" / "kept_runs" / "0.1.0"


@pytest.fixture
def kept(kept_runs, tmp_path, monkeypatch):
    """Copied runs of an earlier version; paths in them are relative, so the test works inside the folder."""
    shutil.copytree(kept_runs, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    return tmp_path / "kept"
