"""Noise in sealed sums: its distribution, the norm of a rounded change, and what sums cost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import chi2, chisquare

from trifed.common.errors import MessageError, RunError
from trifed.config.settings import PrivacySettings, WireSettings
from trifed.federation.compression import Compression, make_compression
from trifed.federation.context import RunContext
from trifed.federation.messages import Header, Rejected
from trifed.federation.privacy_report import of_updates
from trifed.federation.sealed.noise import LEAST_DEVIATION, SumNoise
from trifed.federation.sealed.rules import SumRules, SumTerms
from trifed.federation.sealed.server import UNREADABLE, SumPart, make_server
from trifed.federation.sealed.upload import PENDING, SealedUploads
from trifed.federation.upload import RESIDUAL
from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, compose
from trifed.methods.sealed import sealed
from trifed.privacy import (
    Entry,
    Ledger,
    Sampled,
    discrete_gaussian,
    epsilon_of,
    epsilon_of_sums,
    noise_multiplier,
    read_ledger,
    secure_noise,
    seeded_noise,
    spent,
)

DELTA = 1e-5
LAYOUT = (("x.lora_C.weight", (20, 20)), ("head.weight", (3, 100)))
SIZE = 700
NOISE = SumNoise(clip=0.5, multiplier=3.0, clients=4)
RULES = SumRules(at_least=5, levels=1, learning_rate=0.02, by_label=False, noise=NOISE)
HEADER = Header("upload", "run", "base", 1, 0)


# -- the distribution


@pytest.mark.parametrize("noise", [secure_noise, seeded_noise(np.random.default_rng(0))], ids=["secure", "seeded"])
@pytest.mark.parametrize("deviation", [0.7, 4.0])
def test_the_noise_of_a_client_is_a_discrete_gaussian(deviation, noise):
    n = 200_000
    drawn = discrete_gaussian(deviation, n, noise)
    k = np.arange(-200, 201)
    weights = np.exp(-(k**2) / (2 * deviation**2))
    expected = n * weights / weights.sum()
    common = expected > 20  # by the law: the frequency of each integer, not of a rounded normal number
    counts = np.array([(drawn == integer).sum() for integer in k[common]])
    rest = n - counts.sum(), n - expected[common].sum()
    found = chisquare([*counts, rest[0]], [*expected[common], rest[1]]).pvalue
    assert found > 1e-6, (deviation, found)
    rounded = np.rint(deviation * np.random.default_rng(1).standard_normal(n))
    if deviation < 1:  # a test that rounded normal numbers would pass shows nothing
        counts = np.array([(rounded == integer).sum() for integer in k[common]])
        rest = n - counts.sum(), n - expected[common].sum()
        assert chisquare([*counts, rest[0]], [*expected[common], rest[1]]).pvalue < 1e-6


def test_the_same_source_gives_the_same_integers():
    first, second, other = (
        discrete_gaussian(50.0, 100, seeded_noise(np.random.default_rng(s))) for s in (1, 1, 2)
    )
    assert (first == second).all() and (first != other).any()


# -- the norm


def adversarial(size):
    """Changes whose rounding adds most to their norm, and others at the limits of floats."""
    rng, step = np.random.default_rng(size), NOISE.step(size)
    up = np.full(size, 0.5000001 * step)  # every number is rounded up
    yield up
    for levels in (1, 3, 8, 15, 16):  # a change of about the norm C, each number just above a half
        yield np.full(size, (levels + 0.5000001) * step)
    yield np.where(np.arange(size) % 2, 1, -1) * 15.5000001 * step
    yield np.where(np.arange(size) < 0.508 * size, 15.5001, 16.5001) * step
    yield np.eye(1, size)[0] * NOISE.clip
    for scale in (1e-40, 1e-3, 1.0, 1e30):
        yield scale * rng.standard_normal(size)
    yield np.full(size, 3e38)
    yield np.zeros(size)


@pytest.mark.parametrize("size", [1, 2, 7, 700, 16_896])
def test_no_rounded_change_is_longer_than_the_clip(size):
    for noise in (NOISE, replace(NOISE, multiplier=0.02), replace(NOISE, clip=1e-4)):
        step = noise.step(size)
        assert noise.deviation(size) >= LEAST_DEVIATION * (1 - 1e-12)
        for change in adversarial(size):
            rounded = noise.rounded(change.astype(np.float32))
            assert rounded.dtype == np.int64
            assert math.sqrt(float((rounded.astype(object) ** 2).sum())) * step <= noise.clip


def test_clipping_alone_would_not_bound_the_norm():
    step = NOISE.step(SIZE)
    change = np.where(np.arange(SIZE) < 356, 15.5001, 16.5001) * step  # of the norm C, and all are rounded up
    assert 0.999 * NOISE.clip < np.linalg.norm(change) <= NOISE.clip
    assert np.linalg.norm(np.rint(change / step)) * step > 1.03 * NOISE.clip
    assert np.linalg.norm(NOISE.rounded(change)) * step <= NOISE.clip


def test_a_small_change_keeps_its_direction():
    change = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    change *= 0.9 * NOISE.clip / np.linalg.norm(change)
    found = NOISE.rounded(change) * NOISE.step(SIZE)
    assert np.linalg.norm(found - change) < 0.03 * np.linalg.norm(change)


# -- the sum


def server_of(rules, n):
    settings = AggregationSettings()
    method = sealed(compose(METHODS["fed-xs"], PersonalizationSettings(), settings), settings, False)
    downloads = make_compression(LAYOUT, WireSettings(bits=32))
    context = RunContext(
        method, method.options(), downloads, downloads, LAYOUT, "run", "base", 20, aggregation=settings, sums=rules
    )
    server = make_server(context, n, np.zeros(SIZE, np.float32))
    server.open({})
    return server


def sum_of(server, changes, source, number=1):
    """Let clients send, and return the parts' bytes and the terms; the server takes the sum."""
    uploads = SealedUploads(Compression(LAYOUT), server.rules, np.zeros(0, bool))
    terms, parts, payloads = server.terms(number, sorted(changes)), [], []
    for client in sorted(changes):
        header = server.context.header("upload", number, client)
        payload, memory = uploads.send(header, terms, {PENDING: changes[client]}, noise=source(client))
        assert PENDING not in memory and RESIDUAL not in memory
        payloads.append(payload)
        parts.append(server.read_part(number, client, payload, terms))
        assert not isinstance(parts[-1], Rejected), parts[-1]
    assert server.add(number, terms, parts) is None
    return payloads, terms


@pytest.mark.parametrize("n", [5, 9])
def test_the_sum_has_the_planned_variance_and_mean(n):
    server, rng = server_of(RULES, n), np.random.default_rng(5)
    change = (rng.standard_normal(SIZE) * 0.3 * NOISE.clip / math.sqrt(SIZE)).astype(np.float32)
    rounds, before, drawn = 40, np.zeros(SIZE), []
    for number in range(1, rounds + 1):
        sum_of(server, dict.fromkeys(range(n), change), lambda _: seeded_noise(rng), number)
        now = server.state["now"][0].astype(np.float64)
        drawn.append(now - before - change)
        before = now
    assert server.state["steps"].shape == (1, 0)
    # The mean of n clients has 1/n of the sum's noise, whose deviation is z C √(n / m).
    deviation = NOISE.multiplier * NOISE.clip * math.sqrt(n / NOISE.clients) / n
    noise = np.array(drawn)
    low, high = chi2.ppf([1e-5, 1 - 1e-5], noise.size) / noise.size
    assert low < (noise**2).mean() / deviation**2 < high
    assert abs(noise.mean()) < 5 * deviation / math.sqrt(noise.size)
    length = of_updates(NOISE.multiplier, SIZE, n, NOISE.clients) * NOISE.clip
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1).mean(), length, rtol=0.02)


def test_the_noise_of_the_clients_that_must_keep_it_secret_is_enough():
    deviation = NOISE.deviation(SIZE) * NOISE.step(SIZE) * math.sqrt(NOISE.clients)
    assert deviation == pytest.approx(NOISE.multiplier * NOISE.clip)


def test_nothing_but_the_noised_numbers_is_sent_and_a_wrong_sum_is_found():
    server = server_of(RULES, 5)
    changes = {client: np.full(SIZE, 1.0, np.float32) for client in range(5)}
    payloads, terms = sum_of(server, changes, lambda client: seeded_noise(np.random.default_rng(client)))
    bits = NOISE.bits(5, SIZE)
    assert terms.steps.size == 0 and all(b"magnitudes" not in payload for payload in payloads)
    assert 0 < len(payloads[0]) - math.ceil(SIZE * bits / 8) < 400
    uniform = np.random.default_rng(0).integers(0, 2**bits, SIZE).astype(np.uint32)
    before = server.state["now"].copy()
    wrong = server.add(2, server.terms(2, range(5)), [SumPart(uniform, np.zeros(0, np.uint32))] * 5)
    assert wrong.code == UNREADABLE and (server.state["now"] == before).all()


def test_the_range_holds_every_sum_and_a_larger_one_is_refused():
    for n, size in ((5, 1), (5, 700), (100, 16_896), (1000, 100_000)):
        bits, most = NOISE.bits(n, size), NOISE.most(n, size)
        assert 2 * most < 0.9 * 2**bits and 2 ** (bits - 2) < 2 * most
    with pytest.raises(RunError, match=r"privacy\.update"):
        replace(NOISE, multiplier=1e4).bits(4000, 10**9)


def test_a_part_needs_noise_and_there_is_no_sum_of_holders():
    uploads = SealedUploads(Compression(LAYOUT), RULES, np.zeros(0, bool))
    with pytest.raises(RunError, match="noise"):
        uploads.send(HEADER, SumTerms(range(5)), {PENDING: np.zeros(SIZE, np.float32)})
    with pytest.raises(MessageError, match="label holders"):
        uploads.send(replace(HEADER, round=0), SumTerms(range(5)), {})


# -- what sums cost


def from_the_paper(z, delta):
    """ε of 1/(2z²)-concentrated DP by Canonne, Kamath and Steinke, Proposition 12, over all orders."""
    rho = 1 / (2 * z * z)

    def at(log):
        a = 1 + math.exp(log)
        return rho * a + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)

    return minimize_scalar(at, bounds=(-6, 11), method="bounded").fun


@pytest.mark.parametrize("z", [0.2, 0.6, 1.1, 2.0, 10.0])
def test_a_sum_costs_what_its_concentrated_privacy_says(z):
    found = epsilon_of_sums([z], [], DELTA)
    assert found == pytest.approx(from_the_paper(z, DELTA), rel=1e-4)
    gaussian = epsilon_of([z], DELTA)
    assert gaussian < found < 1.15 * gaussian
    assert epsilon_of_sums([2 * z] * 4, [], DELTA) == pytest.approx(found, rel=1e-9)
    assert epsilon_of_sums([], [], DELTA) == 0 and epsilon_of_sums([z, 0.0], [], DELTA) == math.inf
    with_steps = epsilon_of_sums([z], [Sampled(5.0, 0.1, 3)], DELTA)
    assert found * (1 - 1e-2) < with_steps < found + 5


@pytest.mark.parametrize(("epsilon", "rounds"), [(0.5, 3), (2.0, 10), (8.0, 20)])
def test_the_planned_noise_meets_its_epsilon_and_wastes_little(epsilon, rounds):
    z = noise_multiplier(epsilon, DELTA, rounds, in_sums=True)
    assert epsilon * (1 - 1e-4) < epsilon_of_sums([z] * rounds, [], DELTA) <= epsilon
    assert 1 < z / noise_multiplier(epsilon, DELTA, rounds) < 1.12


def test_a_ledger_of_sums_is_counted_as_sums(tmp_path):
    budget = PrivacySettings.model_validate({"update": {"epsilon": 8.0}})
    z = noise_multiplier(8.0, DELTA, 2, in_sums=True)
    ledger = Ledger(tmp_path, "amber", budget)
    for number in (1, 2):
        ledger.enter(Entry(what="update", round=number, multiplier=z, digest=str(number), clients=4))
        ledger.enter(Entry(what="update", round=number, multiplier=z, digest=str(number), clients=4))
    with pytest.raises(RunError, match=r"privacy\.update"):
        ledger.enter(Entry(what="update", round=2, multiplier=z, digest="made twice, with other noise", clients=4))
    entries = read_ledger(ledger.path).entries
    assert len(entries) == 2
    of_client = spent(entries, budget)[-1]
    assert of_client.releases == 2 and 7.99 < of_client.epsilon <= 8
