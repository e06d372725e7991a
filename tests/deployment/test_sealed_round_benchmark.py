"""What a sealed round costs between sites: both runs are valid, and the pages have the numbers of the record."""

import json
import statistics
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from trifed import make_config

pytest.importorskip("cryptography")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return import_module("figures").script("flower/sealed_round.py")


def test_both_runs_are_valid_and_differ_in_the_seal_alone(benchmark):
    sealed, plain = (make_config(benchmark.settings(on, 10)).model_dump() for on in (True, False))
    assert (sealed["sealing"]["on"], plain["sealing"]["on"]) == (True, False)
    assert sealed["method"] == plain["method"] == make_config({"data": {"source": "none"}}).model_dump()["method"]
    assert {key for key in sealed if sealed[key] != plain[key]} == {"name", "sealing"}
    assert sealed["deployment"]["clients"] == sealed["deployment"]["quorum"] == sealed["sealing"]["at_least"] == 3


def test_seconds_and_bytes_are_those_of_the_rounds_after_the_first(benchmark, sealed, federation, monkeypatch):
    """Three sites in this process, whose run the benchmark measures in place of one over a network."""
    runs = []

    @contextmanager
    def finished(folder, values, sites):
        assert sites == benchmark.SITES
        made = sealed if values["sealing"]["on"] else federation
        coordinator = made(method="own-prior", rounds=values["rounds"], deployment={"quorum": 3})[0]
        coordinator.run()
        runs.append(coordinator.folder)
        yield coordinator.folder.path

    monkeypatch.setattr(benchmark, "deployment", finished)
    plain, summed = (benchmark.measure(on, 3) for on in (False, True))
    assert (plain["rounds_with_a_sum"], summed["rounds_with_a_sum"]) == (0, 3)
    for found, folder in zip((plain, summed), runs, strict=True):
        seconds = [event["seconds"] for event in folder.events() if event["event"] == "round"]
        assert len(seconds) == 3 and found["seconds"] == {
            "median": statistics.median(seconds[1:]),
            "all": seconds[1:],
        }
    for way in ("up", "down"):
        assert summed["bytes_of_one_site"][way] > plain["bytes_of_one_site"][way] > 0


def test_the_pages_have_the_numbers_of_the_committed_record(benchmark):
    kept = json.loads((benchmark.HERE / "sealed_round.json").read_text(encoding="utf-8"))
    both = [kept[form] for form in ("open", "sealed")]
    assert kept["sites"] == 3 and [one["rounds_with_a_sum"] for one in both] == [0, kept["rounds"]]
    shown, medians = [], []
    for one in both:
        seconds = one["seconds"]["all"]
        assert len(seconds) == kept["rounds"] - 1 and one["seconds"]["median"] == statistics.median(seconds)
        medians.append(f"{one['seconds']['median']:.1f}")
        shown.append(f"{medians[-1]} ({min(seconds):.1f} to {max(seconds):.1f})")
    page = (REPOSITORY / "benchmarks" / "flower" / "README.md").read_text(encoding="utf-8")
    assert f"| seconds of a whole round | {' | '.join(shown)} |\n" in page
    for way, more in (("up", ", Flower's requests not counted"), ("down", "")):
        counted = " | ".join(f"{one['bytes_of_one_site'][way]:,}" for one in both)
        assert f"| bytes of one site {way}{more} | {counted} |\n" in page
    details = (REPOSITORY / "docs" / "sealed-details.md").read_text(encoding="utf-8")
    assert f"took {medians[1]} seconds in place of {medians[0]}\n" in details
