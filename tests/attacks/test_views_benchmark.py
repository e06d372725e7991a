"""The measurement of views: every arm is a valid run, and its table follows from kept records."""

import json
import sys
from itertools import product
from pathlib import Path

import pytest

from trifed import make_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "evidence"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "privacy"))
import view_pages
import views


@pytest.mark.parametrize("name", sorted(views.SETS))
def test_every_arm_is_a_valid_run_at_default_work(name):
    for arm, sealed in product(views.ARMS, (False, True)):
        config = make_config(views.configuration(name, arm, 0, sealed, "rows.parquet"))
        assert config.sealing.on is sealed
        steps = 3 if "three steps" in arm else None
        assert (config.training.epochs, config.training.steps, config.training.batch_size) == (1, steps, 16)
        assert config.data.clients.count == 10


def record(seed, single, total):
    way = {"single": single, "sum": total}
    shown = {v: {"clients": 1, "auc": {"round": auc, "mean": auc}} for v, auc in way.items()}
    return {"set": "sst2", "arm": "own-prior", "seed": seed, "sealed": False, "views": shown}


def test_intervals_are_over_seeds_and_clients():
    mean, low, high = views.interval([[0.5, 0.5], [0.7, 0.7]])
    assert (mean, low, high) == pytest.approx((0.6, 0.5, 0.7))
    assert views.interval([[0.6, 0.6, 0.6]]) == pytest.approx((0.6, 0.6, 0.6))


def test_a_seed_may_have_fewer_clients():
    """The mean of both seeds' means, and of the drawn ones too: 0.5 and 0.5 of half of the clients."""
    mean, low, high = views.interval([[0.4, 0.6, 0.5], [0.5]])
    assert mean == pytest.approx(0.5) and 0.4 <= low < 0.46 and 0.54 < high <= 0.6
    assert views.interval([[0.7] * 3, [0.7] * 2]) == pytest.approx((0.7, 0.7, 0.7))


def test_the_goal_of_a_sum_is_its_intervals_upper_end():
    records = [record(seed, [0.7, 0.7], [0.55, 0.57]) for seed in range(3)]
    _, _, single, total = views.tables(records)
    assert single.endswith("| ≥ 0.65: yes |") and total.endswith("| ≤ 0.58: yes |")
    _, _, single, total = views.tables([record(0, [0.6, 0.6], [0.5, 0.6])])
    assert single.endswith("no |") and total.endswith("no |") and "0.550 (0.500–0.600)" in total


def test_every_arm_is_another_run_than_the_plain_one():
    settings = [make_config(views.configuration("sst2", arm, 0, True, "rows.parquet")) for arm in views.ARMS]
    assert len({config.model_dump_json() for config in settings}) == len(settings)
    pulled = make_config(views.configuration("sst2", "own-prior, pull 1", 0, True, "rows.parquet"))
    assert pulled.composed_method().proximal(None).strength == 1.0


def test_records_of_before_a_view_was_measured_stay_in_the_table():
    old, new = record(0, [0.7], [0.55]), record(1, [0.7], [0.55])
    new["views"]["colluding"] = {"clients": 2, "auc": {"round": [0.6], "departure": [0.6]}}
    new["views"]["sum"]["auc"]["departure"] = [0.9]
    _, _, _, total, two = views.tables([old, new])
    assert "| sum | 2 |" in total and "0.9" not in total and total.endswith("| – | ≤ 0.58: yes |")
    assert "| colluding | 1 | 0.600 (0.600–0.600) | – | – | – | 0.600 (0.600–0.600) | – |" in two


def test_the_price_of_an_arm_is_paired_by_client_and_seed():
    def reached(arm, seed, **accuracy):
        return {"set": "sst2", "arm": arm, "seed": seed, "sealed": True, "accuracy": accuracy}

    plain = [reached("own-prior", seed, a=0.8, b=0.4) for seed in range(2)]
    other = [reached("own-prior, rank 8", seed, a=0.7, b=0.3) for seed in range(3)]
    sums = [{**record(0, [0.7], [0.55]), "arm": "own-prior, rank 8", "sealed": True}]
    _, _, first, second = views.prices([*sums, *plain, *other])
    assert first.startswith(
        "| sst2 | own-prior, rank 8 | sealed | 0.700 (0.700–0.700) | 0.550 (0.550–0.550) | – | 50"
    )
    assert first.endswith(") | -10.0 (-10.0 to -10.0) | 1 and 3 |")
    assert "| – | – | – | 60.0 (" in second and second.endswith(") | – | 0 and 2 |")
    assert len(list(views.tables([*sums, *plain, *other]))) == 4  # records of accuracy have no views


def test_what_is_missing_is_found_for_each_measurement(tmp_path, monkeypatch, capsys):
    kept = {**record(0, [0.7], [0.55]), "sealed": True}
    (tmp_path / "sst2.jsonl").write_text(json.dumps(kept) + "\n")
    command = f"views.py --list --sealed --sets sst2 --arms own-prior --seeds 0 1 --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", command.split())
    views.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("seed 0: accuracy missing") and second.endswith("seed 1: views and accuracy missing")


def test_the_pages_have_the_tables_of_the_committed_records():
    """Run `view_pages.py --write` after new records are added."""
    for page, tables in view_pages.tables().items():
        text = (view_pages.ROOT / page).read_text(encoding="utf-8")
        assert all(len(lines) > 2 for lines in tables)
        for lines in tables:
            assert "\n" + "\n".join(lines) + "\n\n" in text, page


def test_a_table_takes_the_place_of_the_one_with_its_first_line():
    page = "Before.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nBetween.\n\n| a | c |\n"
    new = ["| a | b |", "|---|---|", "| 3 | \\1 |", "| 4 | 5 |"]
    text = view_pages.written(page, new)
    assert text == page.replace("| 1 | 2 |", "| 3 | \\1 |\n| 4 | 5 |") == view_pages.written(text, new)
    for wrong in ("Before.\n", page + page):
        with pytest.raises(SystemExit, match="expected one"):
            view_pages.written(wrong, new)


def test_a_page_has_what_is_there_of_any_set_arm_and_seed():
    """A new set, an arm without a page name, one without views, one without accuracy."""
    plain = [{**record(seed, [0.7], [0.55]), "sealed": True} for seed in (0, 1, 4)]
    noised = {**record(0, [0.6], [0.5]), "arm": "own-prior, noise 8", "sealed": True}
    image = {**record(0, [0.6], [0.5]), "set": "cifar10"}
    cost = {"set": "sst2", "arm": "own-prior, noise 8", "seed": 0, "sealed": True, "accuracy": {"a": 0.5}}
    costs = [cost, *({**cost, "arm": "own-prior", "seed": seed, "accuracy": {"a": 0.75}} for seed in (0, 1))]
    records = [image, noised, *plain, *costs, {**cost, "arm": "own-prior, rank 8", "seed": 7}]
    _, _, *rows = view_pages.membership(records)
    assert [line.split(" | ")[:3] for line in rows] == [
        ["| SST-2", "default", "3"], ["| SST-2", "own-prior, noise 8", "1"], ["| CIFAR-10", "default, open", "1"],
    ]  # fmt: skip
    _, _, *rows = view_pages.accuracy(records)
    assert rows == [
        "| SST-2 | default | 2 | 75.0 (75.0 to 75.0) | – | – |",
        "| SST-2 | rank 8 | 1 | 50.0 (50.0 to 50.0) | – | – |",
        "| SST-2 | own-prior, noise 8 | 1 | 50.0 (50.0 to 50.0) | -25.0 (-25.0 to -25.0) | 1 |",
    ]
    _, _, *rows = view_pages.in_short(records)
    assert rows == [
        "| SST-2, default | 3 | 0.70 | 0.55 | 0.55 | – | – |",
        "| SST-2, own-prior, noise 8 | 1 | 0.60 | 0.50 | 0.50 | – | -25.0 (-25.0 to -25.0) |",
    ]
    del noised["views"]["single"], noised["views"]["sum"]["auc"]["mean"]
    assert "| SST-2, own-prior, noise 8 | 1 | – | 0.50 | – | – |" in "\n".join(view_pages.in_short(records))


def test_every_page_name_is_of_a_set_or_an_arm():
    assert set(views.PAGE_NAMES) <= {*views.SETS, *views.ARMS}
    assert len(set(views.PAGE_NAMES.values())) == len(views.PAGE_NAMES)
