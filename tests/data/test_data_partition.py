from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trifed.common.errors import DataError
from trifed.data import ClientSettings, assign_clients
from trifed.data.partition import file_names, split_rows

LABELS = np.arange(600, dtype=np.int64) % 6
SPLITS: list[dict[str, Any]] = [
    {"split": "iid"},
    {"split": "dirichlet"},
    {"split": "pathological"},
    {"split": "sizes", "sizes": [1, 2.5, 4]},
]


def spread(labels: NDArray[np.int64], ids: NDArray[np.int64], count: int) -> float:
    """Mean total-variation distance of the clients' label shares to the table's."""
    share = np.bincount(labels) / len(labels)
    mine = [np.bincount(labels[ids == i], minlength=len(share)) / np.sum(ids == i) for i in range(count)]
    return float(np.mean([np.abs(m - share).sum() / 2 for m in mine]))


@pytest.mark.parametrize("values", SPLITS, ids=lambda values: str(values["split"]))
def test_every_row_goes_to_one_client_and_the_seed_decides_to_which(values: dict[str, Any]) -> None:
    settings = ClientSettings(**values)
    ids, names = assign_clients(LABELS, None, settings, 5)
    assert ids.shape == LABELS.shape and ids.dtype == np.int64
    assert set(ids.tolist()) == set(range(len(names)))
    again, _ = assign_clients(LABELS, None, settings, 5)
    other, _ = assign_clients(LABELS, None, settings, 6)
    assert np.array_equal(ids, again)
    assert not np.array_equal(ids, other)


def test_global_random_state_is_left_alone() -> None:
    import random

    np.random.seed(0)
    before, before_python = np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index, union-attr]
    for values in SPLITS:
        assign_clients(LABELS, None, ClientSettings(**values), 1)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index, arg-type]
    assert random.getstate() == before_python


def test_iid_sizes_differ_by_at_most_one() -> None:
    ids, names = assign_clients(LABELS[:595], None, ClientSettings(split="iid", count=10), 0)
    assert sorted(set(np.bincount(ids))) == [59, 60]
    assert names[0] == "client-00" and names[-1] == "client-09"
    assert spread(LABELS[:595], ids, 10) < 0.2


def test_a_small_alpha_makes_clients_differ_more() -> None:
    def mean_spread(alpha: float) -> float:
        settings = ClientSettings(count=5, alpha=alpha, min_examples=5)
        return float(np.mean([spread(LABELS, assign_clients(LABELS, None, settings, s)[0], 5) for s in range(5)]))

    assert mean_spread(0.1) > mean_spread(1.0) + 0.1 > mean_spread(100.0) + 0.2


def test_dirichlet_keeps_the_smallest_size() -> None:
    for seed in range(5):
        ids, _ = assign_clients(LABELS, None, ClientSettings(alpha=0.3, min_examples=15), seed)
        assert np.bincount(ids, minlength=10).min() >= 15


@pytest.mark.parametrize(("count", "each"), [(10, 2), (3, 2), (6, 1), (4, 3), (5, 6), (13, 5)])
def test_pathological_clients_know_few_labels_and_no_label_is_lost(count: int, each: int) -> None:
    settings = ClientSettings(split="pathological", count=count, labels_per_client=each)
    for seed in range(3):
        ids, _ = assign_clients(LABELS, None, settings, seed)
        assert ids.min() == 0
        assert all(len(np.unique(LABELS[ids == i])) == each for i in range(count))


def test_sizes_follow_the_ratios() -> None:
    settings = ClientSettings(split="sizes", sizes=[6, 3, 1])
    ids, names = assign_clients(LABELS[:103], None, settings, 0)
    assert len(names) == 3
    assert np.allclose(np.bincount(ids), [61.8, 30.9, 10.3], atol=1.5)
    tiny, _ = assign_clients(LABELS[:4], None, ClientSettings(split="sizes", sizes=[1000, 1, 1]), 0)
    assert np.bincount(tiny).tolist() == [2, 1, 1]


def test_a_column_gives_one_client_a_value() -> None:
    groups = [["10", "9", "-1"][i % 3] for i in range(30)]
    settings = ClientSettings(split="column", column="site")
    ids, names = assign_clients(LABELS[:30], groups, settings, 0, ["9", "10", "-1", "77"])
    assert names == ["1", "9", "10", "77"]
    assert [{groups[row] for row in np.flatnonzero(ids == i)} for i in range(4)] == [
        {"-1"},
        {"9"},
        {"10"},
        set(),
    ]


def test_client_names_can_be_file_names() -> None:
    names = file_names(["a/b", "a b", "A-B", "../..", "Zürich", "", "x" * 200])
    assert names[:6] == ["a-b", "a-b-2", "A-B-3", "client", "Zürich", "client-2"]
    assert len(names[6]) == 60
    assert file_names(["a-2", "a", "a"]) == ["a-2", "a", "a-3"]


@pytest.mark.parametrize(
    ("values", "n", "words"),
    [
        ({"split": "iid", "count": 11}, 10, ["10 examples", "11 clients"]),
        ({"count": 10, "min_examples": 20}, 100, ["100 examples", "at least 20"]),
        ({"count": 10, "alpha": 0.01}, 120, ["alpha = 0.01", "Raise data.clients.alpha"]),
        ({"split": "pathological", "labels_per_client": 7}, 600, ["labels_per_client = 7", "6 labels"]),
        ({"split": "pathological", "count": 2}, 600, ["at least 3", "clients.count"]),
        ({"split": "pathological", "count": 10, "labels_per_client": 5}, 12, ["rarest has 2"]),
        ({"split": "column", "column": "x"}, 10, ["client of each row"]),
        ({"split": "sizes", "sizes": [1, 1, 1]}, 2, ["2 examples", "3 clients"]),
    ],
)
def test_splits_that_cannot_be_made_say_what_to_change(values: dict[str, Any], n: int, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        assign_clients(LABELS[:n], None, ClientSettings(**values), 0)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_held_out_parts_are_disjoint_and_their_labels_are_trained(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.zipf(1.6, size=int(rng.integers(1, 200))).astype(np.int64)
    train, valid, test = split_rows(labels, 0.15, 0.25, rng)
    assert np.array_equal(np.sort(np.concatenate([train, valid, test])), np.arange(len(labels)))
    assert set(labels[valid]) | set(labels[test]) <= set(labels[train])
    spare = len(labels) - len(np.unique(labels))
    assert len(test) == min(max(1, round(0.25 * len(labels))), spare)
    assert len(valid) == min(max(1, round(0.15 * len(labels))), spare - len(test))


def test_held_out_parts_are_stratified() -> None:
    # 60, 30 and 10 of 100: a quarter is 15, 7.5 and 2.5, three twentieths are 9, 4.5 and 1.5
    labels = np.repeat(np.array([0, 1, 2]), [60, 30, 10])
    train, valid, test = split_rows(labels, 0.15, 0.25, np.random.default_rng(0))
    assert np.bincount(labels[test])[0] == 15 and set(np.bincount(labels[test])[1:]) <= {2, 3, 7, 8}
    assert np.bincount(labels[valid])[0] == 9
    assert [len(train), len(valid), len(test)] == [60, 15, 25]


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    train, valid, test = split_rows(np.zeros(10, dtype=np.int64), 0.0, 0.0, np.random.default_rng(0))
    assert [len(train), len(valid), len(test)] == [10, 0, 0]


def test_the_last_rows_are_held_out_in_order():
    labels = np.arange(20) // 10
    parts = split_rows(labels, 0.2, 0.25, np.random.default_rng(0), "last")
    assert [part.tolist() for part in parts] == [[*range(11)], [*range(11, 15)], [*range(15, 20)]]


def test_rows_held_out_at_random_are_a_partition_of_the_wanted_sizes_and_not_stratified():
    labels = np.arange(40) % 2
    shares = set()
    for seed in range(20):
        train, valid, test = split_rows(labels, 0.1, 0.25, np.random.default_rng(seed), "random")
        assert (len(train), len(valid), len(test)) == (26, 4, 10)
        assert sorted(np.concatenate([train, valid, test]).tolist()) == list(range(40))
        shares.add(int(labels[test].sum()))
    assert len(shares) > 1


@pytest.mark.parametrize("holdout", ["last", "random"])
def test_a_single_row_stays_in_train(holdout):
    parts = split_rows(np.zeros(1, np.int64), 0.2, 0.5, np.random.default_rng(0), holdout)
    assert [len(part) for part in parts] == [1, 0, 0]
