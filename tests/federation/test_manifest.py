"""A finished run knows its files by their hashes."""

from __future__ import annotations

import hashlib
import shutil

import pytest

from trifed.federation.manifest import MANIFEST, changed_files
from trifed.federation.run_folder import RunFolder
from trifed.reports.doctor import diagnose


@pytest.fixture
def copied(finished, tmp_path):
    return RunFolder(shutil.copytree(finished("own-prior").path, tmp_path / "run"))


def test_every_file_of_a_run_is_listed_with_its_hash(copied):
    listed = copied.read_json(MANIFEST)
    assert {"config.toml", "events.jsonl", "summary.json", "predictions.json", "checkpoint.safetensors"} <= set(
        listed
    )
    for name, entry in listed.items():
        content = (copied.path / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    files = {str(p.relative_to(copied.path)) for p in copied.path.rglob("*") if p.is_file()}
    assert files - set(listed) <= {MANIFEST, "lock"}
    assert changed_files(copied) == []


@pytest.mark.parametrize("name", ["summary.json", "predictions.json", "clients/amber/head.safetensors"])
def test_one_changed_byte_is_found(copied, name):
    path = copied.path / name
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    assert changed_files(copied) == [f"{name} (changed)"]
    path.unlink()
    assert changed_files(copied) == [f"{name} (missing)"]


def test_doctor_says_so(copied):
    assert {check.name: check.state for check in diagnose(copied.path)}["manifest"] == "ok"
    path = copied.path / "predictions.json"
    path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    [check] = [check for check in diagnose(copied.path) if check.name == "manifest"]
    assert check.state == "problem" and "predictions.json" in check.found
