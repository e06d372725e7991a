"""Whether two clients' labels mean the same, from planted means and contrasts."""

import numpy as np
import pytest

from trifed.methods.aggregation import AggregationSettings, agreement
from trifed.similarity import label_meaning_ratio, shared_label_ratio, summarise

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


def test_in_two_domains_the_ratio_is_that_of_the_contrasts():
    made = [client(1, CENTRES), client(2, CENTRES + SHIFT, (30, 80, 60, 40))]
    contrasts, noise, lengths = [], [], []
    for summary in made:
        means, counts = summary.means.astype(float), summary.counts
        errors = (summary.variances.astype(float).sum(1) / (counts - 1)).sum()
        contrasts.append(means - means.mean(0))
        noise.append(0.75 * errors)
        lengths.append(max(0.0, (contrasts[-1] ** 2).sum() - 0.75 * errors))
    expected = ((contrasts[0] - contrasts[1]) ** 2).sum() / (sum(noise) + sum(lengths) / 4)
    assert label_meaning_ratio(made)[0, 1] == pytest.approx(expected, rel=1e-6)
    assert shared_label_ratio(made)[0, 1] > 10 > 1 > expected
    assert share(*made).all()


def test_contrasts_of_which_a_half_agrees_are_a_ratio_of_about_2():
    """With many examples noise does not count: 4 (1 - cosine)."""
    rng, many = np.random.default_rng(3), (4000, 4000)
    along, across = rng.standard_normal((2, 32))
    across -= along * (across @ along) / (along @ along)
    across *= np.linalg.norm(along) / np.linalg.norm(across)
    for cosine in (0.4, 0.6, 0.8):
        turned = cosine * along + (1 - cosine**2) ** 0.5 * across
        made = [client(1, np.stack([0 * along, along]), many), client(2, np.stack([SHIFT, SHIFT + turned]), many)]
        assert label_meaning_ratio(made)[0, 1] == pytest.approx(4 * (1 - cosine), rel=0.1)
        assert share(*made)[0, 1] == (cosine > 0.5)


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("order", [[1, 0, 3, 2], [1, 2, 3, 0]])
def test_permuted_labels_keep_clients_apart_with_and_without_a_shift(order, shift):
    made = [client(1, CENTRES, (400,) * 4), client(2, CENTRES[order] + shift * SHIFT, (400,) * 4)]
    assert not share(*made)[0, 1]


def test_another_domain_without_a_contrast_to_be_seen_is_no_reason_to_share():
    nothing, few = np.zeros((2, 32)), (24, 24)
    shared = [
        share(client(seed, nothing, few), client(seed + 100, nothing + SHIFT, few))[0, 1] for seed in range(40)
    ]
    assert np.mean(shared) <= 0.1
    same = [share(client(seed, nothing, few), client(seed + 100, nothing, few))[0, 1] for seed in range(40)]
    assert np.mean(same) >= 0.95


def test_each_pair_is_compared_by_the_labels_that_it_shares():
    """The third client shares one label with the first, and none with the fourth."""
    made = [
        client(1, CENTRES, (40, 40, 40, 0)),
        client(2, CENTRES + SHIFT, (0, 50, 50, 50)),
        client(3, CENTRES, (0, 0, 70, 0)),
        client(4, CENTRES, (0, 0, 0, 90)),
    ]
    ratio = label_meaning_ratio(made)
    for pair in ([0, 1], [0, 2], [1, 2], [2, 3]):
        alone = label_meaning_ratio([made[place] for place in pair])[0, 1]
        assert ratio[tuple(pair)] == pytest.approx(alone, nan_ok=True)
    assert ratio[0, 1] < shared_label_ratio(made)[0, 1]
    assert ratio[0, 2] == shared_label_ratio(made)[0, 2]
    assert np.isnan(ratio[2, 3])
    np.testing.assert_array_equal(ratio, ratio.T)
    assert (np.diag(ratio) == 0).all()


def test_clients_with_the_same_one_label_are_compared_by_its_mean():
    made = [client(seed, CENTRES, (40, 0, 0, 0)) for seed in (1, 2)] + [client(3, CENTRES + SHIFT, (40, 0, 0, 0))]
    np.testing.assert_array_equal(label_meaning_ratio(made), shared_label_ratio(made))


def test_equal_clients_share_also_where_nothing_varies():
    still = [summarise(np.repeat(np.eye(4)[:2], 20, 0), np.repeat([0, 1], 20), seed=0) for _ in range(2)]
    assert share(*still).all()
