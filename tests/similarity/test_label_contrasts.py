"""Whether two clients' labels mean the same, from planted contrasts."""

import numpy as np
import pytest

from trifed.methods.aggregation import AggregationSettings, agreement
from trifed.similarity import label_contrast_ratio, shared_label_ratio, summarise

RNG = np.random.default_rng(0)
CENTRES = 0.2 * RNG.standard_normal((4, 32))
SHIFT = 0.4 * RNG.standard_normal(32)


def client(seed, centres, counts=(60, 60, 60, 60), spread=0.5):
    """The summary of Gaussian examples, `counts` of each label around its centre."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    x = centres[labels] + spread * rng.standard_normal((len(labels), 32))
    return summarise(x, labels, max_components=1, seed=0)


def share(*summaries):
    """Which clients share by default, (n, n)."""
    return agreement(summaries) * AggregationSettings().agreement > 1.0


def test_the_ratio_is_that_of_its_equation():
    one, other = client(1, CENTRES), client(2, CENTRES[[1, 0, 3, 2]] + SHIFT, (30, 80, 60, 40))
    contrasts, noise, lengths = [], [], []
    for summary in (one, other):
        means = summary.means.astype(float)
        counts = summary.counts
        errors = (summary.variances.astype(float).sum(1) * counts / (counts - 1) / counts).sum()
        contrasts.append(means - means.mean(0))
        noise.append(0.75 * errors)
        lengths.append(max(0.0, (contrasts[-1] ** 2).sum() - 0.75 * errors))
    expected = ((contrasts[0] - contrasts[1]) ** 2).sum() / (sum(noise) + sum(lengths) / 4)
    assert label_contrast_ratio([one, other])[0, 1] == pytest.approx(expected, rel=1e-6)


def test_a_shift_of_domain_does_not_keep_clients_apart():
    one, other = client(1, CENTRES), client(2, CENTRES + SHIFT)
    assert shared_label_ratio([one, other])[0, 1] > 10
    assert label_contrast_ratio([one, other])[0, 1] < 1
    assert share(one, other).all()


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_permuted_labels_keep_clients_apart_with_and_without_a_shift(shift):
    one, other = client(1, CENTRES, (400,) * 4), client(2, CENTRES[[1, 2, 3, 0]] + shift * SHIFT, (400,) * 4)
    assert not share(one, other)[0, 1]


def test_swapped_labels_are_about_8_and_unrelated_ones_about_4():
    """With many examples noise does not count: 4 (1 - cosine of the contrasts)."""
    many, unrelated = (4000, 4000), np.random.default_rng(5).standard_normal((2, 32))
    unrelated *= np.linalg.norm(CENTRES[0] - CENTRES[1]) / np.linalg.norm(unrelated[0] - unrelated[1])
    found = label_contrast_ratio(
        [client(1, CENTRES[:2], many), client(2, CENTRES[[1, 0]] + SHIFT, many), client(3, unrelated, many)]
    )
    contrast, other = CENTRES[0] - CENTRES[1], unrelated[0] - unrelated[1]
    cosine = contrast @ other / np.linalg.norm(contrast) ** 2
    assert found[0, 1] == pytest.approx(8, rel=0.1)
    assert found[0, 2] == pytest.approx(4 * (1 - cosine), rel=0.1)


def test_too_few_examples_to_see_a_difference_keep_nobody_apart():
    """The benefit of the doubt: labels without any visible contrast are about 1 apart."""
    nothing = np.zeros((2, 32))
    few = (24, 24)
    pairs = [[client(seed, nothing, few), client(seed + 100, nothing + SHIFT, few)] for seed in range(40)]
    ratios = [label_contrast_ratio(pair)[0, 1] for pair in pairs]
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
    assert np.mean(np.array(ratios) < 2) > 0.95


def test_each_pair_is_compared_by_the_labels_that_it_shares():
    """The third client shares one label with the first, and none with the fourth."""
    made = [
        client(1, CENTRES, (40, 40, 40, 0)),
        client(2, CENTRES + SHIFT, (0, 50, 50, 50)),
        client(3, CENTRES, (0, 0, 70, 0)),
        client(4, CENTRES, (0, 0, 0, 90)),
    ]
    ratio = label_contrast_ratio(made)
    for pair in ([0, 1], [0, 2], [1, 2], [2, 3]):
        alone = label_contrast_ratio([made[place] for place in pair])[0, 1]
        assert ratio[tuple(pair)] == pytest.approx(alone, nan_ok=True)
    assert ratio[0, 2] == shared_label_ratio(made)[0, 2]
    assert np.isnan(ratio[2, 3])
    np.testing.assert_array_equal(ratio, ratio.T)
    assert (np.diag(ratio) == 0).all()


def test_equal_clients_share_also_where_nothing_varies():
    still = [summarise(np.repeat(np.eye(4)[:2], 20, 0), np.repeat([0, 1], 20), seed=0) for _ in range(2)]
    assert share(*still).all()
