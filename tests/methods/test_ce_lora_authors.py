"""ce-lora as its authors' client does it: a preset of settings, and summaries of raw features without a floor."""

from __future__ import annotations

import numpy as np
import pytest

from trifed import make_config, run
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ConfigError, GuardError, MessageError, ModelError
from trifed.federation.cost import _one_time_messages, estimate_cost
from trifed.federation.messages import ENVELOPE, Header, decode_summary, encode_summary
from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, ServerContext, Upload, compose
from trifed.methods.base import SummarySeeds

OURS, THEIRS = METHODS["ce-lora"], METHODS["ce-lora-authors"]
SEEDS = SummarySeeds(0, 1)
DATA = {"source": "t.csv"}
ALLOW = {"privacy": {"small_components": "allow"}}


def raw(features, labels, **options):
    return OURS.summarise(OURS.options(summary="raw", **options), features, labels, SEEDS)


def examples(counts, width=12, seed=0):
    """Features in three clusters a label, far from each other."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = 5 * rng.standard_normal((len(counts), 3, width))
    features = centres[labels, np.arange(len(labels)) % 3] + 0.1 * rng.standard_normal((len(labels), width))
    return features.astype(np.float32), labels


def test_the_preset_is_its_settings():
    config = make_config({"data": DATA, "method": "ce-lora-authors"})
    adapter, training, options = config.adapter, config.training, config.method.options()
    assert (adapter.rank, adapter.alpha, adapter.init_std, adapter.train_norms) == (8, 8, 1e-3, True)
    assert (training.optimizer_state, training.schedule) == ("reset", "linear-each-round")
    assert (options.summary, options.model_similarity, options.noise_floor) == ("raw", "cka", False)
    assert (options.self_weight, options.data_share) == (0.5, 0.5)
    assert config.privacy.small_components == "refuse"  # the preset does not switch the guard off
    usual = make_config({"data": DATA, "method": "ce-lora"})
    assert (usual.adapter, usual.training) == (AdapterSettings(), type(training)())
    assert usual.method.options().summary == "projected"
    for field in ("adapter", "trains", "sends", "start", "aggregate", "download", "summarise"):
        assert getattr(THEIRS, field) is getattr(OURS, field)
    told = make_config({"data": DATA, "method": "ce-lora-authors", "adapter": {"rank": 16, "alpha": 16}})
    assert (told.adapter.rank, told.adapter.alpha, told.adapter.train_norms) == (16, 16, True)
    assert not told.with_method("ce-lora").adapter.train_norms


def test_parts_of_the_server_keep_the_presets_name_and_options():
    composed = compose(THEIRS, PersonalizationSettings(), AggregationSettings(groups="agreement"))
    assert (composed.name, composed.options) == ("ce-lora-authors", THEIRS.options)
    assert compose(OURS, PersonalizationSettings(), AggregationSettings(groups="agreement")).name == "ce-lora"


def test_a_raw_summary_has_up_to_three_components_of_each_label_from_two_examples_on():
    features, labels = examples([30, 3, 2, 1])
    summary = raw(features, labels)
    assert summary.means.shape[1] == 12
    assert [int((summary.labels == label).sum()) for label in range(4)] == [3, 3, 2, 0]
    assert summary.class_counts.tolist() == [30, 3, 2, 1]
    for label in range(3):
        own = summary.labels == label
        assert summary.counts[own].sum() == summary.class_counts[label]
        mean = summary.counts[own] @ summary.means[own] / summary.counts[own].sum()
        np.testing.assert_allclose(mean, features[labels == label].mean(0), rtol=1e-4, atol=1e-4)
    assert summary.self_distance > 0 and raw(features, labels, noise_floor=False).self_distance == 0
    projected = OURS.summarise(OURS.options(), features, labels, SEEDS)
    assert projected.means.shape[1] == 64 and projected.counts.min() >= 20


def test_the_server_takes_a_raw_summary_of_the_agreed_width_alone():
    summary = raw(*examples([9, 8, 7], width=384))
    header = Header("summary", "run", "base", 0, 1)
    payload = encode_summary(header, summary)
    found = decode_summary(payload, header, 384, 3)
    np.testing.assert_array_equal(found.means, summary.means)
    for dim in (64, 385):
        with pytest.raises(MessageError):
            decode_summary(payload, header, dim, 3)


def test_features_that_are_too_wide_are_told():
    with pytest.raises(ModelError, match=r"method\.summary: .*1025.*1024.*projected"):
        raw(*examples([4, 4], width=1025))


def test_raw_summaries_find_groups_of_clients():
    """Data of two kinds: similarities within a kind are above those across, and weights follow."""
    chosen = THEIRS.options(data_share=1.0)
    summaries = {
        client: THEIRS.summarise(chosen, *examples([20, 20], seed=client % 2), SEEDS) for client in range(4)
    }
    layout, start = (("x.lora_C.weight", (4, 4)),), np.eye(4, dtype=np.float32).ravel()
    context = ServerContext(4, layout, start, summaries)
    state = THEIRS.start(chosen, context)
    sent = [Upload(i, 1, 40, start + np.float32(0.1 * (i + 1))) for i in range(4)]
    weights = THEIRS.aggregate(chosen, context, state, sent)["weights"]
    for one, twin, other in ((0, 2, 1), (1, 3, 2)):
        assert weights[one, twin] > weights[one, other]


def test_settings_that_do_not_go_together():
    for values, setting in (
        ({"method": {"name": "ce-lora", "summary": "raw", "match_labels": True}}, "method.match_labels"),
        ({"method": "ce-lora-authors", "privacy": {"summary": {"epsilon": 8}}}, "privacy.summary"),
        (
            {"method": "ce-lora", "baselines": ["ce-lora-authors"], "privacy": {"summary": {"epsilon": 8}}},
            "privacy.summary",
        ),
        ({"method": "ce-lora-authors", "adapter": {"rank": 3}}, "method.model_similarity"),
    ):
        with pytest.raises(ConfigError) as caught:
            make_config({"data": DATA, **values})
        assert [problem.split(":")[0] for problem in caught.value.problems] == [setting]
    make_config({"data": DATA, "method": {"name": "ce-lora"}, "privacy": {"summary": {"epsilon": 8}}})


def test_a_client_refuses_it_and_names_the_setting(toy_values, tmp_path):
    config = make_config(toy_values(method="ce-lora-authors", rounds=1))
    with pytest.raises(
        GuardError, match=r"privacy\.small_components: .*method\.summary.*privacy\.small_components ="
    ):
        run(config, tmp_path / "run")


def test_a_run_trains_and_sends_what_the_cost_says(finished, tiny_encoder):
    done = finished("ce-lora-authors", **ALLOW)
    assert done.summary["finished"]
    cost = estimate_cost(str(tiny_encoder), AdapterSettings(rank=4), labels=3)
    (item,) = [each for each in cost.methods if each.method == "ce-lora-authors"]
    environment = (done.path / "environment.json").read_text(encoding="utf-8")
    assert f'"trained_values": {item.trained_values}' in environment
    assert f'"sent_values": {item.sent_values}' in environment
    assert item.trains == ("A", "B", "C", "head", "norms") and item.sends == ("C",)
    (once,) = item.once
    component, label, fixed = 2 * 4 * 32 + 16, 16, 8
    most = fixed + 3 * (label + 3 * component)
    assert (once.up, once.down, once.at_most) == (most, 0, True)
    summaries = [event["up"] for event in done.events if event["event"] == "summary"]
    assert len(summaries) == 3
    for up in summaries:
        components, labels = up["counts"] // 8, up["class_counts"] // 8
        assert components > labels == 3
        sizes = sum(size for name, size in up.items() if name != ENVELOPE)
        assert sizes == fixed + label * labels + component * components <= most


def test_the_cost_says_where_no_such_summary_is_possible():
    (once,) = _one_time_messages(THEIRS, {}, labels=2, features=4096, examples=40)
    assert (once.up, once.basis.split(":")[0]) == (0, "none") and "4096" in once.basis
    (ours,) = _one_time_messages(OURS, {}, labels=2, features=4096, examples=40)
    assert ours.up == 8 + 2 * (16 + 528)
