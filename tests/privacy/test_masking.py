"""Masks: they cancel exactly, one upload is uniform, and what a server has does not give any client's vector."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cryptography")  # of the extra `flower`

from scipy import stats

from trifed.common.errors import MessageError, RunError
from trifed.privacy.masking import FixedPoint, Masker, signed, stream, summed


@pytest.fixture
def cluster():
    """`cluster(4)`: maskers that have met."""

    def make(clients=4, at_least=3, run="tickets"):
        maskers = [Masker(run, at_least) for _ in range(clients)]
        for masker in maskers:
            masker.meet(other.public for other in maskers)
        return maskers

    return make


def vectors(clients, count=200, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (clients, count), dtype=np.uint32)


# -- fixed point


@pytest.mark.parametrize("clients", [1, 3, 1000])
def test_numbers_come_back_to_half_a_step_and_sums_are_exact(clients):
    """Each client's rounding is at most 1 / (2 scale), that of a sum clients times as much; none overflows."""
    fixed = FixedPoint(limit=2.0, clients=clients)
    values = np.random.default_rng(0).uniform(-2, 2, (clients, 50))
    values[:, :2] = 2.0, -2.0
    total = np.sum([fixed.encode(row) for row in values], axis=0, dtype=np.uint32)
    half = 0.5 / fixed.scale
    np.testing.assert_allclose(fixed.decode(total), values.sum(0), atol=clients * half * (1 + 1e-6), rtol=0)
    assert np.abs(fixed.decode(total)).max() > 2 * clients * (1 - 1e-6)


@pytest.mark.parametrize("value", [2.1, -2.1, np.nan, np.inf])
def test_what_does_not_fit_is_refused(value):
    with pytest.raises(RunError, match=r"over 2\b"):
        FixedPoint(2.0, 3).encode(np.array([0.0, value]))
    with pytest.raises(RunError, match="expected more than 0"):
        FixedPoint(0.0, 3)


# -- masks


@pytest.mark.parametrize("clients", [2, 3, 8])
def test_masks_cancel_exactly(clients, cluster):
    maskers, values = cluster(clients, at_least=2), vectors(clients)
    masked = {m.public: m.mask(1, v) for m, v in zip(maskers, values, strict=True)}
    np.testing.assert_array_equal(summed(masked), values.sum(0, dtype=np.uint32))


def test_a_weighted_mean_needs_the_weights_as_one_more_number(cluster):
    """Σ n_k C_k / Σ n_k, of cores in [-1, 1] and up to 100 examples."""
    cores, examples = np.random.default_rng(1).uniform(-1, 1, (5, 64)), np.array([24, 7, 100, 60, 1])
    fixed, maskers = FixedPoint(limit=100.0, clients=5), cluster(5)
    sent = [np.append(n * core, n) for n, core in zip(examples, cores, strict=True)]
    masked = {m.public: m.mask(1, fixed.encode(v)) for m, v in zip(maskers, sent, strict=True)}
    total = fixed.decode(summed(masked))
    np.testing.assert_allclose(total[:-1] / total[-1], np.average(cores, axis=0, weights=examples), atol=1e-6)


def test_one_upload_is_uniform_and_says_nothing_of_what_is_in_it(cluster):
    """Of 64,000 words that were all 0: bytes by χ², single bits by their share; both would see a constant mask.

    With p below 1e-6 a right implementation fails once in a million runs.
    """
    word = cluster(3)[0].mask(1, np.zeros(64_000, np.uint32))
    counts = np.bincount(word.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6
    bits = np.unpackbits(word.view(np.uint8)).reshape(-1, 32).sum(0)
    assert stats.binomtest(int(bits.max()), 64_000).pvalue > 1e-6 / 32
    assert stats.chisquare(np.bincount((word[1:] ^ word[:-1]).view(np.uint8), minlength=256)).pvalue > 1e-6


def test_the_same_vector_looks_another_every_round_and_to_everybody(cluster):
    maskers, zeros = cluster(3), np.zeros(64, np.uint32)
    seen = [m.mask(number, zeros).tobytes() for m in maskers for number in (1, 2, 3)]
    assert len(set(seen)) == 9


def test_no_sum_of_what_a_server_sees_is_one_clients_vector(cluster):
    """All masked uploads with either sign, and public keys in the place of seeds: in every combination but the sum
    of all something is left of the masks, and it is as far from a client's vector as chance has it."""
    maskers, values = cluster(4), vectors(4)
    masked = {m.public: m.mask(1, v) for m, v in zip(maskers, values, strict=True)}
    uploads = np.stack(list(masked.values()))
    guesses = [stream(key, values.shape[1]) for key in masked]
    for signs in itertools.product((-1, 0, 1), repeat=4):
        combined = (np.array(signs, np.int64) @ uploads.astype(np.int64)).astype(np.uint32)
        for guess in [np.zeros_like(combined), *guesses]:
            hits = (combined + guess == values).mean(1)
            assert hits.max() < 0.05, signs
    np.testing.assert_array_equal(summed(masked), values.sum(0, dtype=np.uint32))


def test_two_worlds_with_one_sum_look_alike(cluster):
    """Only the sum is determined: for any other vectors with this sum there are masks that make these uploads.

    y_i = x_i + m_i with Σ m_i = 0. For x' with Σ x' = Σ x, m'_i = y_i − x'_i has Σ m' = 0 as well.
    """
    maskers, values = cluster(3), vectors(3)
    uploads = [m.mask(1, v) for m, v in zip(maskers, values, strict=True)]
    others = vectors(3, seed=9)
    others[2] = values.sum(0, dtype=np.uint32) - others[0] - others[1]
    masks = np.stack(uploads) - others
    assert not masks.sum(0, dtype=np.uint32).any() and (others != values).any(1).all()


# -- dropping out


@pytest.mark.parametrize("gone", [(2,), (0, 4)])
def test_who_sends_nothing_is_taken_out(gone, cluster):
    maskers, values = cluster(5), vectors(5)
    here = [place for place in range(5) if place not in gone]
    masked = {maskers[place].public: maskers[place].mask(1, values[place]) for place in here}
    missing = [maskers[place].public for place in gone]
    revealed = {maskers[place].public: maskers[place].reveal(1, missing) for place in here}
    np.testing.assert_array_equal(summed(masked, revealed), values[here].sum(0, dtype=np.uint32))
    assert (summed(masked) != values[here].sum(0, dtype=np.uint32)).mean() > 0.9


def test_seeds_that_were_revealed_are_of_that_round_alone(cluster):
    maskers, values = cluster(4), vectors(4)
    gone = maskers[3].public
    seeds = [maskers[place].reveal(1, [gone])[gone] for place in range(3)]
    upload = maskers[3].mask(2, values[3])
    for place, seed in enumerate(seeds):
        upload = upload - signed(gone, maskers[place].public, stream(seed, 200))
    assert (upload == values[3]).mean() < 0.05


def test_a_client_lets_no_sum_of_too_few_be_seen(cluster):
    maskers = cluster(4, at_least=3)
    with pytest.raises(MessageError, match=r"2 dropped of 4 .* 3"):
        maskers[0].reveal(1, [maskers[1].public, maskers[2].public])
    with pytest.raises(MessageError, match="not in the cluster"):
        maskers[0].reveal(1, [Masker("x", 3).public])
    maskers[0].reveal(1, [maskers[1].public])
    with pytest.raises(MessageError, match="other dropped"):
        maskers[0].reveal(1, [maskers[2].public])
    maskers[0].reveal(2, [maskers[2].public])


def test_seeds_have_to_come_from_all_that_are_there(cluster):
    maskers, values = cluster(4), vectors(4)
    masked = {m.public: m.mask(1, v) for m, v in zip(maskers[:3], values, strict=False)}
    revealed = {m.public: m.reveal(1, [maskers[3].public]) for m in maskers[:2]}
    with pytest.raises(MessageError, match="revealed"):
        summed(masked, revealed)
    with pytest.raises(MessageError, match=r"lengths \[2, 3\]"):
        summed({b"a": np.zeros(2, np.uint32), b"b": np.zeros(3, np.uint32)})


def test_what_one_mask_does_not_hold_against(cluster):
    """A server that has an upload and says that it does not: with the others' seeds it has that client's vector.

    This is what the paper's second mask is for; the test says that it is missing here, as the page does.
    """
    maskers, values = cluster(4), vectors(4)
    upload = maskers[0].mask(1, values[0])
    for other in maskers[1:]:
        seed = other.reveal(1, [maskers[0].public])[maskers[0].public]
        upload = upload - signed(maskers[0].public, other.public, stream(seed, 200))
    np.testing.assert_array_equal(upload, values[0])


# -- keys


@pytest.mark.parametrize("key", [b"", b"short", bytes(32)])
def test_keys_that_cannot_be_used_are_refused(key, cluster):
    """32 zeros are a point of small order: the secret would be the same for everybody (RFC 7748, section 6.1)."""
    maskers = cluster(3)
    with pytest.raises(MessageError, match="invalid key"):
        maskers[0].meet([key, maskers[1].public])
    with pytest.raises(MessageError, match="twice"):
        maskers[0].meet([maskers[1].public, maskers[1].public])
    with pytest.raises(MessageError, match=r"2 clients.* 3"):
        maskers[0].meet([maskers[1].public])


def test_a_mask_is_used_once(cluster):
    masker = cluster(3)[0]
    masker.mask(1, np.zeros(4, np.uint32))
    with pytest.raises(RunError, match="one vector"):
        masker.mask(1, np.ones(4, np.uint32))
    with pytest.raises(RunError, match="meet"):
        Masker("tickets", 2).mask(1, np.zeros(4, np.uint32))


def test_another_run_has_other_masks():
    maskers = [Masker("one", 2), Masker("other", 2)]
    for masker in maskers:
        masker.meet(other.public for other in maskers)
    sent = [masker.mask(1, np.zeros(64, np.uint32)) for masker in maskers]
    assert (sent[0] + sent[1]).any()  # they do not cancel


def test_the_stream_is_that_of_rfc_8439():
    """Its test vector 1 of appendix A.1: key, nonce and counter 0."""
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a37"
    assert stream(bytes(32), 12).astype("<u4").tobytes().hex() == expected


def test_without_the_package_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(RunError, match=r"pip install 'trifed\[flower\]'"):
        Masker("tickets", 2)


def test_the_page_about_it_runs_as_it_stands():
    page = (Path(__file__).resolve().parents[2] / "docs" / "secure-aggregation.md").read_text(encoding="utf-8")
    example = next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Masker" in code)
    found: dict = {}
    exec(example, found)  # our own page
    mean = np.average(found["cores"], axis=0, weights=found["examples"])
    np.testing.assert_allclose(found["mean"], mean, atol=1e-6)
