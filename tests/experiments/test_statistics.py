"""The bootstrap against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from trifed.experiments.comparison_summary import interval, mean_over_clients
from trifed.reports.results import Plateau


def rows(share, size):
    right = np.zeros(size, bool)
    right[: round(share * size)] = True
    return right


def test_of_equal_clients_it_is_the_binomial_interval():
    # Clients alike: drawing clients adds nothing, so the mean of 10 x 100 rows at .8 a s.d. of √(.16 / 1000).
    low, high = interval([rows(0.8, 100)] * 10)
    assert (low, high) == pytest.approx((0.8 - 1.96 * 0.01265, 0.8 + 1.96 * 0.01265), abs=0.002)


def test_rows_that_are_right_in_part_count_in_part():
    # Shares .2 and .4, half each, of 10 × 100 rows: mean .3, s.d. of a row .1, of the mean .1 / √1000.
    low, high = interval([np.array([0.2, 0.4] * 50)] * 10)
    assert (low, high) == pytest.approx((0.3 - 1.96 * 0.00316, 0.3 + 1.96 * 0.00316), abs=0.0005)
    shares = np.linspace(0.1, 0.6, 50)
    assert interval([shares + 0.25] * 4, [shares] * 4) == pytest.approx((0.25, 0.25))


def test_of_clients_that_differ_it_is_as_wide_as_clients_make_it():
    # Rows without noise: means 0 or 1 of 16 clients, half each: s.d. of the mean √(.25 / 16) = .125.
    low, high = interval([rows(float(i % 2), 50) for i in range(16)])
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.125, 0.5 + 1.96 * 0.125), abs=0.03)


def test_pairing_takes_out_what_both_share():
    rng = np.random.default_rng(0)
    theirs = [rng.random(60) < share for share in rng.random(10)]
    mine = [row.copy() for row in theirs]
    assert interval(mine, theirs) == (0.0, 0.0)
    for row in mine:
        row[np.flatnonzero(~row)[:3]] = True  # never worse, at most three better of 60
    low, high = interval(mine, theirs)
    gain = mean_over_clients(mine) - mean_over_clients(theirs)
    assert 0 < low < gain < high < 0.1
    alone = interval(mine)
    assert alone[1] - alone[0] > 5 * (high - low)


def test_the_sign_and_the_order_of_clients():
    mine, theirs = [rows(0.9, 40), rows(0.5, 10)], [rows(0.6, 40), rows(0.4, 10)]
    low, high = interval(mine, theirs)
    assert 0.0 <= low < high
    back = interval(theirs, mine)
    assert back == pytest.approx((-high, -low), abs=0.02)


def test_clients_without_test_rows_are_left_out():
    some = [rows(0.5, 20), rows(1.0, 20)]
    assert interval([*some, rows(0, 0)]) == interval(some)
    assert mean_over_clients([*some, rows(0, 0)]) == 0.75
    assert np.isnan(interval([rows(0, 0)])).all()


def test_a_plateau_is_a_small_rise_from_the_third_to_the_last_quarter():
    found = Plateau.of([0.1, 0.2, 0.8, 0.8, 0.9, 0.9, 0.902, 0.906])
    assert found.rise_in_last_quarter == pytest.approx(0.904 - 0.9)
    assert found.reached is True
    assert Plateau.of([0.1, 0.5, 0.7, 0.8]).reached is False
    assert Plateau.of([0.1, 0.5, 0.7]).reached is None
