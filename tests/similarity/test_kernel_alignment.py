import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifed.common.errors import TrifedError
from trifed.similarity import SimilarityError, cosine, linear_cka


def draw(n, layers, r, seed=0):
    return np.random.default_rng(seed).standard_normal((n, layers, r, r))


def unbiased_hsic(k, m):
    """HSIC_1 of Song et al. 2012 as a U-statistic: the mean over all quadruples of distinct i, j, q, s.

    h = K_ij (M_ij + M_qs - 2 M_iq), written as a loop over i, j and sums over what is left.
    """
    n = len(k)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            rest = [q for q in range(n) if q not in (i, j)]
            pairs = (n - 2) * (n - 3)
            m_qs = sum(m[q, s] for q in rest for s in rest if q != s)
            m_iq = sum(m[i, q] for q in rest) * (n - 3)
            total += k[i, j] * (m[i, j] * pairs + m_qs - 2 * m_iq)
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def biased_hsic(k, m):
    n = len(k)
    h = np.eye(n) - 1 / n
    return np.trace(k @ h @ m @ h) / (n - 1) ** 2


@pytest.mark.parametrize(("debiased", "hsic"), [(True, unbiased_hsic), (False, biased_hsic)])
@pytest.mark.parametrize("examples", ["rows", "columns"])
def test_against_explicit_hsic(debiased, hsic, examples):
    x = draw(3, 2, 6, seed=1)
    got = linear_cka(x, debiased, examples)
    data = x if examples == "rows" else x.transpose(0, 1, 3, 2)
    for a in range(3):
        for b in range(3):
            layers = []
            for layer in range(2):
                k, m = (data[c, layer] @ data[c, layer].T for c in (a, b))
                layers.append(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))
            assert got[a, b] == pytest.approx(np.mean(layers), abs=1e-10)


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_sees_no_sign_scale_or_rotation_of_features_and_cosine_does(debiased):
    x = draw(1, 2, 8)[0]
    q = np.linalg.qr(draw(1, 1, 8, seed=5)[0, 0])[0]
    stack = np.stack([x, -x, 3.0 * x, x @ q])
    np.testing.assert_allclose(linear_cka(stack, debiased), np.ones((4, 4)), atol=1e-9)
    # On the other side the rotation mixes the examples, and is seen.
    assert linear_cka(stack, debiased, "columns")[0, 3] < 0.9
    c = cosine(stack)
    assert c[0, 1] == pytest.approx(-1) and c[0, 2] == pytest.approx(1) and abs(c[0, 3]) < 0.5


def test_unrelated_matrices():
    pairs = np.triu_indices(300, 1)
    x = draw(300, 1, 8)
    assert linear_cka(x, debiased=False)[pairs].mean() == pytest.approx(0.525, abs=0.01)
    assert linear_cka(x)[pairs].mean() == pytest.approx(0.0, abs=0.01)
    assert cosine(x)[pairs].mean() == pytest.approx(0.0, abs=0.01)
    # Near the common start the cores themselves all look alike (the reason to compare changes).
    assert linear_cka(np.eye(8) + 0.05 * x, debiased=False)[pairs].mean() > 0.9


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-200, 1e-8, 1.0, 1e100]), debiased=st.booleans())
def test_laws(seed, scale, debiased):
    x = draw(5, 2, 5, seed)
    order = np.random.default_rng(seed).permutation(5)
    for similarity in (lambda cores: linear_cka(cores, debiased), cosine):
        s = similarity(x * scale)
        assert np.array_equal(s, s.T) and (np.diag(s) == 1).all() and (np.abs(s) <= 1).all()
        np.testing.assert_allclose(s, similarity(x), atol=1e-9)
        np.testing.assert_allclose(similarity(x[order]), s[np.ix_(order, order)], atol=1e-9)


@pytest.mark.parametrize("debiased", [True, False])
def test_no_change_is_like_nobody(debiased):
    x = draw(4, 2, 6)
    x[1] = 0
    x[2] = 0
    for s in (linear_cka(x, debiased), cosine(x)):
        assert not s[1, [0, 2, 3]].any() and not s[2, [0, 1, 3]].any()
        assert (np.diag(s) == 1).all() and s[0, 3] != 0


def test_a_change_equal_for_all_examples_carries_no_alignment():
    x = draw(2, 1, 6)
    x[0] = x[0, :, :1]
    assert linear_cka(x, debiased=False)[0, 1] == 0


def test_a_layer_without_change_counts_as_zero():
    x = draw(2, 2, 6)
    alone = linear_cka(x[:, :1])[0, 1]
    x[0, 1] = 0
    assert linear_cka(x)[0, 1] == pytest.approx(alone / 2)


def test_many_clients_need_the_memory_of_one_product():
    n, layers, r = 200, 12, 8
    x = draw(n, layers, r)
    tracemalloc.start()
    s = linear_cka(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert s.shape == (n, n)
    assert peak < 20 * x.nbytes + 8 * s.nbytes  # nothing of size N² · r²: that would be 2.5 M numbers, 20 MB


def test_the_number_of_numpy_calls_does_not_grow_with_clients(monkeypatch):
    calls = []
    original = np.abs

    def counting(*arguments, **keywords):
        calls.append(1)
        return original(*arguments, **keywords)

    monkeypatch.setattr(np, "abs", counting)
    counts = []
    for n in (2, 200):
        calls.clear()
        linear_cka(draw(n, 2, 4))
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


def test_mistakes_are_errors():
    with pytest.raises(SimilarityError, match="at least 4"):
        linear_cka(draw(2, 1, 3))
    assert linear_cka(draw(2, 1, 3), debiased=False).shape == (2, 2)
    for cores in (
        np.zeros((2, 4, 4)),
        np.zeros((0, 1, 4, 4)),
        np.full((1, 1, 4, 4), np.nan),
        np.zeros((1, 1, 4, 4), bool),
    ):
        for similarity in (linear_cka, cosine):
            with pytest.raises(TrifedError):
                similarity(cores)
            with pytest.raises(ValueError):
                similarity(cores)
    with pytest.raises(SimilarityError, match="rows"):
        linear_cka(draw(2, 1, 4), examples="diagonal")
