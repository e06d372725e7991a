"""A client with noise on a real model: what it sends is a function of noised numbers, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load

from trifed import make_config
from trifed.common.errors import RunError
from trifed.config.settings import PrivacySettings
from trifed.data import make_clients
from trifed.federation.client import Client
from trifed.federation.client_settings import ClientSettings
from trifed.federation.client_update import ClientDataset
from trifed.federation.context import run_context
from trifed.federation.dp_mechanism import DpContext, DpMechanism
from trifed.federation.messages import decode_summary
from trifed.federation.training.shared_model import build_shared_model
from trifed.federation.upload import ClipAndNoise
from trifed.methods import METHODS
from trifed.privacy import seeded_noise
from trifed.tasks import TASKS

PRIVACY = {"summary": {"epsilon": 4.0}, "update": {"epsilon": 8.0, "clip": 0.5}}
ROUNDS = 3


class RecordingStep(ClipAndNoise):
    """Clip and noise that records changes and noised changes; `script`, if given, replaces the noised ones."""

    script: list[np.ndarray] | None = None

    def __init__(self, step):
        super().__init__(step.clip, step.multiplier, step.noise)
        self.given, self.made = [], []

    def apply(self, values, reference, round_number, memory):
        self.given.append(values - reference)
        noised = super().apply(values, reference, round_number, memory) - reference
        self.made.append(noised if self.script is None else self.script[round_number - 1])
        return reference + self.made[-1]


class Recording(DpMechanism):
    """A mechanism whose steps record."""

    def upload_steps(self):
        return [RecordingStep(step) for step in super().upload_steps()]


def recorded(site):
    [step] = [step for step in site.uploads.steps if isinstance(step, RecordingStep)]
    return step


@pytest.fixture
def site_of(toy_values, tmp_path):
    """`site_of("ce-lora", index=1, noise=7, wire={"bits": 4})`: one client of the toy run with its own noising."""

    def make(method, index, noise=0, name="a", **changes):
        privacy = {**PRIVACY, **changes.pop("privacy", {})}
        config = make_config(toy_values(method=method, privacy=privacy, rounds=ROUNDS, **changes))
        task = TASKS[config.task]
        data = make_clients(config.data, config.seed, task.roles)
        settings = (config.model, config.adapter, config.training)
        shared_model = build_shared_model(
            task.load(config.model.name), METHODS[method], data.label_names, config.seed, settings, task
        )
        mine = data.clients[index]
        client = ClientDataset(
            0, mine.name, *(shared_model.encode(part) for part in (mine.train, mine.valid, mine.test))
        )

        def draw(purpose, number):
            return seeded_noise(np.random.default_rng([noise, purpose, number]))

        dp_mechanism = Recording(
            config.privacy, DpContext("x", tmp_path / name, ROUNDS, config.training.steps, draw)
        )
        context = run_context(config, shared_model.layout, shared_model.fingerprint)
        settings = ClientSettings.of(config, len(data.label_names))
        site = Client(context, shared_model, client, settings, dp_mechanism)
        site.start()
        return site

    return make


def numbers(payload):
    """All that a message says but its header, which is written in any order."""
    return {name: (array.dtype.str, array.tobytes()) for name, array in load(payload).items()}


def all_rounds(site):
    """Every upload's numbers, with a made-up download in the second round."""
    uploads = [site.round(1, None).upload]
    header = site.context.header("download", 2, 0)
    rng = np.random.default_rng(5)
    values = (site.reference + 0.01 * rng.standard_normal(len(site.reference))).astype(np.float32)
    uploads.append(site.round(2, site.context.compression.encode(header, values, site.reference)).upload)
    return [numbers(upload) for upload in [*uploads, site.round(3, None).upload]]


WAYS = [
    ("own-prior", 1),
    ("own-prior", 32),
    ("ce-lora", 4),
    ("pfedme-lora", 8),
    ("fedprox-lora", 32),
    ("fedavg-lora", 1),
]


@pytest.mark.parametrize(("method", "bits"), WAYS)
def test_uploads_are_a_function_of_the_noised_changes_alone(method, bits, site_of):
    # Another client, with other data, that says the same noised changes sends the same bytes in every round: what
    # rounding keeps back, and the reference that changes are against, hold nothing else of the first one's.
    one = site_of(method, 0, wire={"bits": bits})
    sent = all_rounds(one)
    other = site_of(method, 1, name="b", wire={"bits": bits})
    recorded(other).script = recorded(one).made
    assert all_rounds(other) == sent
    assert not np.array_equal(recorded(one).given[0], recorded(other).given[0])  # they did learn other things


def read(site, upload):
    """Header and values of an upload of round 1."""
    reference = np.zeros_like(site.reference)
    return site.context.compression.decode(upload, site.context.header("upload", 1, 0), reference)


def test_what_is_told_is_what_was_received_and_the_noised_change(site_of):
    site = site_of("fedavg-lora", 0)
    start = site.reference
    told = read(site, site.round(1, None).upload)[1]
    np.testing.assert_array_equal(told, start + recorded(site).made[0])


def test_noise_has_the_size_it_should_have(site_of):
    site = site_of("fedavg-lora", 0)
    site.round(1, None)
    change, made = recorded(site).given[0].astype(np.float64), recorded(site).made[0]
    assert np.linalg.norm(change) > 0.5  # so that it is clipped
    noise = made - 0.5 * change / np.linalg.norm(change)
    sigma = 0.5 * site.privacy.update_noise
    # 1,123 numbers: the standard error of their root mean square is σ/√(2n); five of them.
    assert np.sqrt((noise**2).mean()) == pytest.approx(sigma, rel=5 / np.sqrt(2 * len(noise)))


def test_no_message_has_an_exact_number_of_examples(site_of):
    site = site_of("own-prior", 0)
    summary = decode_summary(site.summary("data"), site.context.header("summary", 0, 0))
    header, _ = read(site, site.round(1, None).upload)
    assert header.examples == site.examples == max(1, summary.class_counts.sum())
    other = site_of("fedavg-lora", 0, name="b")
    assert read(other, other.round(1, None).upload)[0].examples == 1


def test_the_same_data_tell_the_same_summary_and_other_data_a_new_release(site_of, tmp_path):
    site = site_of("own-prior", 0)
    first = numbers(site.summary("data"))
    again = site_of("own-prior", 0, noise=99)  # a new process, whose noise is another
    assert again.examples == site.examples
    assert numbers(again.summary("data")) == first
    assert len(again.privacy.ledger.book.entries) == 1
    before = (tmp_path / "a" / "summary.safetensors").read_bytes()
    with pytest.raises(RunError, match="releases"):
        again.summary("other data")
    assert (tmp_path / "a" / "summary.safetensors").read_bytes() == before


def test_a_summary_that_was_kept_and_not_entered_is_entered_before_it_is_told(site_of, tmp_path):
    first = numbers(site_of("own-prior", 0).summary("data"))
    (tmp_path / "a" / "ledger.json").unlink()  # as if the process had ended between the two
    site = site_of("own-prior", 0)
    assert numbers(site.summary("data")) == first
    assert len(site.privacy.ledger.book.entries) == 1


def test_summaries_for_as_many_changes_of_data_as_planned(toy_values, tmp_path):
    config = make_config(toy_values(privacy={"summary": {"epsilon": 4.0, "releases": 3}}))
    rng = np.random.default_rng(0)
    dp_mechanism = DpMechanism(config.privacy, DpContext("x", tmp_path, 2, None, lambda *_: seeded_noise(rng)))

    def data():
        return np.eye(4), np.zeros(4, np.int64)

    for mark in "abc":
        dp_mechanism.summary(mark, 2, data, exact=data)
    with pytest.raises(RunError, match="has made 3 releases"):
        dp_mechanism.summary("d", 2, data, exact=data)
    one = DpMechanism(
        PrivacySettings.model_validate({"summary": {"epsilon": 4.0}}),
        DpContext("y", tmp_path / "y", 2, None, None),
    )
    assert dp_mechanism.summary_noise == pytest.approx(3**0.5 * one.summary_noise)


def test_who_has_no_examples_is_told_apart_by_nothing(site_of):
    # It takes part: its change is 0, its upload is noise, its summary too.
    site = site_of("own-prior", 0)
    train = site.dataset.train
    more = {name: column[:0] for name, column in train.more.items()}
    none = replace(train, ids=train.ids[:0], labels=train.labels[:0], more=more)
    site.dataset = replace(site.dataset, train=none)
    told = decode_summary(site.summary("none"), site.context.header("summary", 0, 0))
    assert told.class_labels.tolist() == [0, 1, 2]
    assert site.examples >= 1
    assert len(all_rounds(site)) == 3
    assert not recorded(site).given[0].any()


def test_where_training_is_noised_the_prior_starts_from_noised_counts(site_of):
    changes = {"privacy": {"training": {"epsilon": 6.0}}, "training": {"steps": 2}}
    site = site_of("own-prior", 0, **changes)
    flat = site.local_init["head.bias"]
    assert flat.std() == 0  # nothing is known before the summary
    told = decode_summary(site.summary("data"), site.context.header("summary", 0, 0))
    counts = told.class_counts + 0.1
    np.testing.assert_allclose(site.local_init["head.bias"], np.log(counts / counts.sum()), rtol=1e-5)
    np.testing.assert_array_equal(site.state.tensors["head.bias"], site.local_init["head.bias"])
    exact = np.bincount(site.dataset.train.labels, minlength=3)
    assert told.class_counts.tolist() != exact.tolist()
    # Without noise the labels of validation examples would count in what is used.
    assert len(site.dataset.valid)
    used = site.tensors("interpolated", None)["head.bias"]
    np.testing.assert_allclose(used, site.local_init["head.bias"], atol=1e-6)
    again = site_of("own-prior", 0, **changes)  # a new process begins with what was told
    np.testing.assert_array_equal(again.local_init["head.bias"], site.local_init["head.bias"])
