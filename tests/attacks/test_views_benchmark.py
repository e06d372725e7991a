"""The measurement of views: every arm is a valid run, and its table follows from kept records."""

import sys
from itertools import product
from pathlib import Path

import pytest

from trifed import make_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "evidence"))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "privacy"))
import views


@pytest.mark.parametrize("name", sorted(views.SETS))
def test_every_arm_is_a_valid_run_at_default_work(name):
    for arm, sealed in product(views.ARMS, (False, True)):
        config = make_config(views.configuration(name, arm, 0, sealed, "rows.parquet"))
        assert config.sealing.on is sealed
        assert (config.training.epochs, config.training.steps, config.training.batch_size) == (1, None, 16)
        assert config.data.clients.count == 10


def record(seed, single, total):
    way = {"single": single, "sum": total}
    shown = {v: {"clients": 1, "auc": {"round": auc, "mean": auc}} for v, auc in way.items()}
    return {"set": "sst2", "arm": "own-prior", "seed": seed, "sealed": False, "views": shown}


def test_intervals_are_over_seeds_and_clients():
    mean, low, high = views.interval([[0.5, 0.5], [0.7, 0.7]])
    assert (mean, low, high) == pytest.approx((0.6, 0.5, 0.7))
    assert views.interval([[0.6, 0.6, 0.6]]) == pytest.approx((0.6, 0.6, 0.6))


def test_the_goal_of_a_sum_is_its_intervals_upper_end():
    records = [record(seed, [0.7, 0.7], [0.55, 0.57]) for seed in range(3)]
    _, _, single, total = views.tables(records)
    assert single.endswith("| ≥ 0.65: yes |") and total.endswith("| ≤ 0.58: yes |")
    _, _, single, total = views.tables([record(0, [0.6, 0.6], [0.5, 0.6])])
    assert single.endswith("no |") and total.endswith("no |") and "0.550 (0.500–0.600)" in total
