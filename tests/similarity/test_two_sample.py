"""The two-sample ratio: exact small cases, and that it is about 1 between samples of one distribution."""

from __future__ import annotations

import numpy as np
import pytest

from trifed.similarity import (
    SimilarityError,
    pooled_moments,
    shared_label_ratio,
    summarise,
    two_sample_ratio,
)


def ratio_of(samples: list[np.ndarray]) -> np.ndarray:
    moments = [(x.mean(0), x.var(0, ddof=1).sum(), len(x)) for x in samples]
    return two_sample_ratio(*map(np.array, zip(*moments, strict=True)))


def test_two_clients_by_hand():
    """‖m − m'‖² = 3² + 4² = 25; noise 8/4 + 6/2 = 5; the ratio is 5."""
    ratio = two_sample_ratio([[0, 0], [3, 4]], [8, 6], [4, 2])
    assert ratio == pytest.approx(np.array([[0, 5], [5, 0]]))


def test_one_distribution_gives_one_whatever_the_units_and_sizes():
    """E‖m − m'‖² is the noise itself, so the mean over 300 pairs in 64 dimensions is 1 within .03."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.1, 2, 64)
    found = [ratio_of([scales * rng.standard_normal((n, 64)) for n in (30, 90)])[0, 1] for _ in range(300)]
    assert np.mean(found) == pytest.approx(1, abs=0.03)


def test_the_distance_of_two_distributions_counts_in_multiples_of_the_noise():
    """m − m' = (1, 0, …) over noise 2 · 64/50 adds 1/2.56; with a hundred times the examples, 100/2.56."""
    rng = np.random.default_rng(1)
    shift = np.zeros(64)
    shift[0] = 1
    for n, expected in ((50, 1 + 1 / 2.56), (5000, 1 + 100 / 2.56)):
        found = [
            ratio_of([rng.standard_normal((n, 64)), shift + rng.standard_normal((n, 64))])[0, 1] for _ in range(40)
        ]
        assert np.mean(found) == pytest.approx(expected, rel=0.1)


def test_symmetry_order_and_units():
    rng = np.random.default_rng(2)
    samples = [rng.standard_normal((n, 5)) for n in (10, 20, 30)]
    ratio = ratio_of(samples)
    assert ratio == pytest.approx(ratio.T)
    assert (np.diag(ratio) == 0).all()
    assert ratio_of(samples[::-1]) == pytest.approx(ratio[::-1, ::-1])
    assert ratio_of([1000 * x + 7 for x in samples]) == pytest.approx(ratio)


def test_examples_that_do_not_vary():
    """Without noise, equal means are no distance and other means infinitely far."""
    ratio = two_sample_ratio([[1.0], [1.0], [2.0]], [0, 0, 0], [5, 5, 5])
    assert ratio[0, 1] == 0
    assert ratio[0, 2] == np.inf


def test_a_client_without_moments_is_unknown():
    ratio = two_sample_ratio([[1.0], [np.nan]], [1, np.nan], [5, 0])
    assert np.isnan(ratio[0, 1])
    assert ratio[0, 0] == 0


def test_components_together_are_the_whole_sample():
    """Law of total variance: classes apart and pooled again have the moments of all examples."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], 40)
    x = 0.1 * rng.standard_normal((120, 6)) + 0.2 * labels[:, None]
    means, spreads, counts = pooled_moments([summarise(x, labels, seed=0), summarise(x, 0 * labels, seed=0)])
    for place in range(2):
        assert means[place] == pytest.approx(x.mean(0), abs=1e-6)
        assert spreads[place] == pytest.approx(x.var(0, ddof=1).sum(), rel=1e-5)
        assert counts[place] == 120


def test_too_few_examples_leave_nothing_to_pool():
    few = summarise(np.zeros((5, 6)), np.zeros(5, int), seed=0)
    means, spreads, counts = pooled_moments([few])
    assert np.isnan(means).all()
    assert np.isnan(spreads).all()
    assert counts.tolist() == [0]


def labelled(rng, counts, centres):
    """A summary of Gaussian examples, `counts` of each label around its centre."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return summarise(
        centres[labels] + 0.1 * rng.standard_normal((len(labels), 32)), labels, max_components=1, seed=0
    )


def test_one_shared_label_is_the_ratio_of_that_label_alone():
    """Labels 0 and 1 against 1 and 2: only 1 counts."""
    rng = np.random.default_rng(4)
    centres = rng.uniform(-0.3, 0.3, (3, 32))
    one, other = labelled(rng, [40, 30, 0], centres), labelled(rng, [0, 25, 50], centres)
    moments = [
        (part.means[row], part.variances[row].astype(float).sum() * n / (n - 1), n)
        for part, row, n in ((one, 1, 30), (other, 0, 25))
    ]
    expected = two_sample_ratio(*map(np.array, zip(*moments, strict=True)))
    assert shared_label_ratio([one, other]) == pytest.approx(expected)


def test_more_of_a_label_is_no_other_meaning_and_other_centres_are():
    """Over 200 pairs the mean is 1 within .03 however the labels are mixed, while all examples together differ."""
    rng = np.random.default_rng(5)
    centres = rng.uniform(-0.3, 0.3, (2, 32))
    alike, pooled, swapped = [], [], []
    for _ in range(200):
        pair = [labelled(rng, [30, 120], centres), labelled(rng, [120, 30], centres)]
        alike.append(shared_label_ratio(pair)[0, 1])
        pooled.append(two_sample_ratio(*pooled_moments(pair))[0, 1])
        swapped.append(shared_label_ratio([pair[0], labelled(rng, [120, 30], centres[::-1])])[0, 1])
    assert np.mean(alike) == pytest.approx(1, abs=0.03)
    assert min(pooled) > 2 and min(swapped) > 2


def test_examples_of_a_label_that_do_not_vary_are_infinitely_far_from_others():
    still = [summarise(np.full((20, 4), value), np.zeros(20, int), seed=0) for value in (0.25, 0.5)]
    assert shared_label_ratio(still)[0, 1] == np.inf


def test_clients_without_a_label_in_common_are_unknown_to_each_other():
    rng = np.random.default_rng(6)
    centres = rng.uniform(-0.3, 0.3, (2, 32))
    few = labelled(rng, [15, 19], centres)  # under twenty of a label, no moments of it
    ratio = shared_label_ratio([labelled(rng, [40, 0], centres), labelled(rng, [0, 40], centres), few])
    assert np.isnan(ratio[~np.eye(3, dtype=bool)]).all()
    assert (np.diag(ratio) == 0).all()


@pytest.mark.parametrize(
    ("means", "spreads", "counts", "said"),
    [
        ([[1.0], [2.0]], [1, 1, 1], [1, 1], "expected"),
        ([[1.0], [2.0]], [1, -1], [1, 1], "negative"),
    ],
)
def test_what_does_not_fit_is_refused(means, spreads, counts, said):
    with pytest.raises(SimilarityError, match=said):
        two_sample_ratio(means, spreads, counts)


def by_all_pairs_at_once(summaries):
    """The same ratio, label by label over an (N, N, dim) array."""
    distance, noise = np.zeros((2, len(summaries), len(summaries)))
    for label in range(6):
        moments = []
        for summary in summaries:
            (rows,) = np.nonzero(summary.labels == label)
            n = summary.counts[rows].sum()
            variance = summary.variances[rows].astype(float).sum() * n / (n - 1) / n if len(rows) else np.nan
            moments.append(
                (summary.means[rows].astype(float).sum(0) if len(rows) else np.full(8, np.nan), variance)
            )
        means, own = map(np.array, zip(*moments, strict=True))
        apart = ((means[:, None] - means[None]) ** 2).sum(-1)
        both = own[:, None] + own[None]
        distance += np.nan_to_num(apart)
        noise += np.where(np.isfinite(apart), both, 0)
    with np.errstate(invalid="ignore"):
        ratio = distance / noise
    np.fill_diagonal(ratio, 0)
    return ratio


@pytest.mark.parametrize("seed", range(4))
def test_pairs_one_by_one_are_all_pairs_at_once_in_any_order(seed):
    """Labels at random, one that a single client has and one that nobody has, too few examples, a client twice."""
    rng = np.random.default_rng([7, seed])
    centres = rng.uniform(-0.3, 0.3, (6, 8))
    counts = np.where(rng.random((15, 6)) < 0.4, 0, rng.integers(10, 60, (15, 6)))
    counts[:, 4], counts[:, 5], counts[1:3] = 0, 0, 9
    counts[3, 4] = 40
    labels = [np.repeat(np.arange(6), row) for row in counts]
    made = [
        summarise(centres[y] + 0.1 * rng.standard_normal((len(y), 8)), y, floor=10, max_components=1, seed=0)
        for y in labels
    ]
    made.append(made[3])
    ratio = shared_label_ratio(made)
    np.testing.assert_allclose(ratio, by_all_pairs_at_once(made), rtol=1e-12, atol=0)
    assert ratio[3, -1] == 0
    order = rng.permutation(len(made))
    turned = shared_label_ratio([made[place] for place in order])
    np.testing.assert_allclose(turned, ratio[np.ix_(order, order)], rtol=1e-12, atol=0)
