"""The benchmark of keys, signatures and masks, and the page that tells its numbers."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return import_module("figures").script("privacy/masks_time.py")


@pytest.mark.parametrize(("clients", "bits"), [(3, 3), (10, 5), (100, 8)])
def test_a_client_masks_in_the_bits_of_its_sum(script, clients, bits):
    found = script.measure(clients, repeats=2, numbers=10)
    assert (found["clients"], found["bits"], found["numbers"]) == (clients, bits, 10)
    assert 0 < found["seconds"]["least"] <= found["seconds"]["median"] <= found["seconds"]["most"]


def test_the_page_has_the_numbers_of_the_record(script):
    rows = json.loads(script.OUT.read_text(encoding="utf-8"))["rows"]
    seconds = {row["clients"]: row["seconds"]["median"] for row in rows}
    assert {row["numbers"] for row in rows} == {script.NUMBERS}
    page = (REPOSITORY / "docs" / "sealed-details.md").read_text(encoding="utf-8").replace("\n", " ")
    assert f"take {1000 * seconds[10]:.1f} ms with ten clients" in page
    assert f"{1000 * seconds[100]:.0f} ms with a hundred and {seconds[1000]:.2f} seconds with a thousand" in page
