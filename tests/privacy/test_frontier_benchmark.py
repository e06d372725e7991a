"""What noise leaves of the accuracy: every arm is a valid run, and the table follows from kept records."""

from importlib import import_module
from pathlib import Path

import pytest

from trifed import make_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def frontier(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("figures").script("privacy/frontier.py")


def test_every_arm_is_a_valid_run_with_its_noise_and_nothing_else(frontier):
    arms = frontier.arms([*frontier.PLAIN, *frontier.NOISED], [8.0, 2.0], [0.1, 0.5])
    assert {name.split(" ε")[0] for name in arms} == {*frontier.PLAIN, *frontier.NOISED}
    for name, arm in arms.items():
        config = make_config(frontier.configuration(arm, 0, 10, 8, "rows.parquet"))
        assert config.sealing.on is name.startswith("sealed") and config.adapter.rank == 8
        assert config.personalization.share is not name.startswith("alone")
        for kind in ("update", "training"):
            budget = getattr(config.privacy, kind)
            assert (budget is not None) is (f"{kind} ε" in name)
            assert budget is None or f" ε = {budget.epsilon:g}" in name
        update = config.privacy.update
        assert update is None or name.endswith(f"clip {update.clip:g}")
        starts_from_summaries = "training" in name or "open update" in name
        assert (config.privacy.summary is not None) is starts_from_summaries


def test_the_table_is_paired_by_client_and_seed_within_rank_and_rounds(frontier):
    def record(arm, seed, rank=8, sent=3300, **accuracy):
        held = {"accuracy": accuracy, "bytes": {"per_upload": sent}}
        return {"arm": arm, "seed": seed, "rank": rank, "rounds": 10, **held}

    alone = [record(frontier.BEST_ALONE, seed, sent=None, a=0.5, b=0.7) for seed in (0, 1)]
    noised = [record("sealed update", seed, a=0.6, b=0.8) for seed in (0, 1, 2)]
    _, _, *rows = frontier.tables([*alone, *noised, record("sealed update", 0, rank=16, a=0.6, b=0.8)])
    plain, own, other = [row.strip("| ").split(" | ") for row in rows]
    assert plain[0] == frontier.BEST_ALONE and plain[1] == "8, 10" and plain[3:] == ["–", "0.0", "2"]
    assert own[2].startswith("70.0 (") and own[3:] == ["+10.0 (+10.0 to +10.0)", "3.3", "3"]
    assert other[1] == "16, 10" and other[3] == "–"  # separate training was not measured at that rank


def test_the_page_has_the_table_of_the_records(frontier):
    page = (frontier.RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    assert "\n".join(frontier.tables(frontier.results())) in page
