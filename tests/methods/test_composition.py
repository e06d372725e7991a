"""Parts that any method can be given: composed by settings, equal to the preset that is made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from trifed import make_config, run
from trifed.common.errors import ConfigError, ModelError
from trifed.federation.training.shared_model import layouts_of
from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, ServerContext, Upload, compose
from trifed.methods.base import SummarySeeds
from trifed.methods.own_prior import PARTS

NO_PARTS, ALL = PersonalizationSettings(), AggregationSettings()
DATA = {"source": "t.csv", "text": "text", "label": "label"}
LAYOUT = (("x.lora_C.weight", (2, 2)), ("head.weight", (3, 4)), ("head.bias", (3,)))
SIZE = 4 + 12 + 3


def problems(**values):
    with pytest.raises(ConfigError) as caught:
        make_config({"data": DATA, **values})
    return caught.value.problems


@pytest.mark.parametrize("name", sorted(METHODS))
def test_without_parts_a_method_is_what_it_is(name):
    method = METHODS[name].preset_of or METHODS[name]
    composed = compose(method, NO_PARTS, ALL)
    assert composed.aggregate is method.aggregate and composed.download is method.download
    assert composed.sends is method.sends and composed.local_init is method.local_init
    assert composed.evaluated_model == method.evaluated_model and not composed.calibrated


@pytest.mark.parametrize("preset", ["own-prior", "own-prior-lora"])
def test_a_preset_is_its_parts_and_no_more(preset):
    """The same settings by parts and by preset: equal method, equal numbers, other name."""
    base = {"own-prior": "fed-xs", "own-prior-lora": "fedavg-lora"}[preset]
    config = make_config({"data": DATA, "method": base, **PARTS})
    by_parts, by_name = config.composed_method(), METHODS[preset]
    for field in ("summarise", "start", "aggregate", "download", "on_membership_change"):
        assert getattr(by_parts, field).__func__ is getattr(by_name, field).__func__
        assert getattr(by_parts, field).__self__ == getattr(by_name, field).__self__
    assert by_parts.local_init == by_name.local_init and by_parts.interpolation == by_name.interpolation == 0.75
    for parameter in ("x.lora_A.weight", "x.lora_C.weight", "head.weight", "head.bias"):
        assert by_parts.sends(parameter) == by_name.sends(parameter)


def test_fedper_is_fedavg_with_the_head_at_home():
    by_parts = make_config({"data": DATA, "method": "fedavg-lora", "personalization": {"keep": ["head."]}})
    by_name = make_config({"data": DATA, "method": "fedper-lora"})
    assert by_name.personalization == by_parts.personalization
    one, other = by_name.composed_method(), by_parts.composed_method()
    assert one.aggregate is other.aggregate and one.evaluated_model == other.evaluated_model == "received"
    for parameter in ("x.lora_A.weight", "x.lora_B.weight", "head.weight", "head.bias"):
        assert one.sends(parameter) == other.sends(parameter) == (".lora_" in parameter)


def test_a_rival_with_the_same_parts_reaches_the_presets_numbers(toy_values, tmp_path):
    """fedavg-lora, with parts and one bit by settings, ends with the tensors of own-prior-lora."""
    adapter, wire, models = {"rank": 4, "alpha": 8}, {"bits": 1}, {}
    for name, parts in (("own-prior-lora", {}), ("fedavg-lora", PARTS)):
        config = make_config(toy_values(method=name, rounds=2, adapter=adapter, wire=wire, **parts))
        done = run(config, tmp_path / name)
        files = sorted((done.path / "clients").rglob("*.safetensors"))
        models[name] = [array for file in files for _, array in sorted(load_file(file).items())]
    for preset, rival in zip(*models.values(), strict=True):
        assert np.array_equal(preset, rival)


def server(method, counts):
    """A method's state for clients with these label counts, and a function that aggregates."""
    rng, centres, summaries = np.random.default_rng(0), np.random.default_rng(1).standard_normal((3, 8)), {}
    for client, row in enumerate(counts):
        labels = np.repeat(np.arange(3), row)
        features = (centres[labels] + 0.3 * rng.standard_normal((len(labels), 8))).astype(np.float32)
        if method.summarise:
            summaries[client] = method.summarise(method.options(), features, labels, SummarySeeds(0, client))
    context = ServerContext(len(counts), LAYOUT, np.zeros(SIZE, np.float32), summaries)
    return context, method.start(method.options(), context)


@pytest.mark.parametrize(("weights", "shares"), [("equal", [1, 1, 1]), ("examples", [40, 70, 100])])
def test_weights_of_a_plain_average(weights, shares):
    method = compose(METHODS["fed-xs"], NO_PARTS, AggregationSettings(weights=weights))
    context, state = server(method, [[30, 10, 0], [20, 20, 30], [40, 0, 60]])
    rng = np.random.default_rng(2)
    sent = [Upload(i, 1, n, rng.standard_normal(SIZE).astype(np.float32)) for i, n in enumerate([40, 70, 100])]
    state = method.aggregate(method.options(), context, state, sent)
    expected = np.average([u.values for u in sent], axis=0, weights=shares)
    np.testing.assert_allclose(method.download(state, 1), expected, rtol=1e-5, atol=1e-6)


def test_label_rows_count_a_row_and_a_bias_by_examples_of_the_label():
    counts = np.array([[30, 10, 0], [20, 20, 0]])
    method = compose(METHODS["fed-xs"], NO_PARTS, AggregationSettings(weights="label-rows"))
    context, state = server(method, counts)
    rng = np.random.default_rng(3)
    sent = [Upload(i, 1, 40, rng.standard_normal(SIZE).astype(np.float32)) for i in range(2)]
    state = method.aggregate(method.options(), context, state, sent)
    expected = np.zeros(SIZE)
    expected[:4] = (sent[0].values[:4] + sent[1].values[:4]) / 2
    for label in (0, 1):  # no client has label 2: its row and bias stay at the start, 0
        for place in (slice(4 + 4 * label, 8 + 4 * label), slice(16 + label, 17 + label)):
            expected[place] = np.average([u.values[place] for u in sent], axis=0, weights=counts[:, label])
    np.testing.assert_allclose(method.download(state, 0), expected, rtol=1e-5, atol=1e-6)


def test_ce_lora_mixes_within_agreeing_groups_when_asked():
    method = compose(METHODS["ce-lora"], NO_PARTS, AggregationSettings(groups="agreement", agreement=0.0))
    context, state = server(method, [[30, 30, 0], [25, 25, 0], [30, 20, 0]])
    context = ServerContext(3, LAYOUT[:1], np.zeros(4, np.float32), context.summaries)
    state = method.start(method.options(), context)
    sent = [Upload(i, 1, 60, np.full(4, i, np.float32)) for i in range(3)]
    state = method.aggregate(method.options(), context, state, sent)
    assert np.array_equal(state["weights"], np.eye(3))


def test_ce_lora_weighs_by_examples_when_asked():
    context, _ = server(METHODS["ce-lora"], [[30, 30, 0]] * 3)
    context = ServerContext(3, LAYOUT[:1], np.zeros(4, np.float32), context.summaries)
    sent = [Upload(i, 1, n, np.full(4, 1, np.float32)) for i, n in enumerate([10, 10, 30])]
    weights = {}
    for rule in (None, "examples"):
        method = compose(METHODS["ce-lora"], NO_PARTS, AggregationSettings(weights=rule))
        state = method.start(method.options(), context)
        weights[rule] = method.aggregate(method.options(), context, state, sent)["weights"][0]
    ratio = (weights["examples"][2] / weights["examples"][1]) / (weights[None][2] / weights[None][1])
    assert ratio == pytest.approx(3.0)


def test_what_is_kept_at_home_is_not_sent():
    method = compose(METHODS["fedavg-lora"], PersonalizationSettings(keep=["head."]), ALL)
    assert [method.sends(name) for name in ("head.weight", "head.bias", "x.lora_A.weight")] == [False, False, True]
    assert method.trains("head.weight")


@pytest.mark.parametrize(
    ("method", "keep", "layer"),
    [
        ("fedex-lora", ["x.lora_B."], "x"), ("fedex-lora", ["x.lora_R."], "x"), ("fedalt", ["x.lora_A."], "x"),
        ("fedalt", ["x.lora_rest_B."], "x"), ("fedex-lora", ["y.lora_", "head."], ""), ("fedalt", ["x."], ""),
        ("fedavg-lora", ["x.lora_A."], ""),
    ],
)  # fmt: skip
def test_a_server_that_needs_whole_layers_gets_all_or_nothing_of_each(method, keep, layer):
    kinds = ("A", "B", "R", "rest_A", "rest_B", "mixer")
    tensors = {f"{name}.lora_{kind}.weight": torch.zeros(2, 2) for name in "xy" for kind in kinds}
    tensors["head.weight"] = torch.zeros(3, 2)
    composed = compose(METHODS[method], PersonalizationSettings(keep=keep), ALL)
    if layer:
        with pytest.raises(ModelError, match=rf"^personalization\.keep: .*'{layer}'"):
            layouts_of(composed, tensors)
        return
    sent, received = ({name for name, _ in part} for part in layouts_of(composed, tensors))
    assert sent and not [name for name in sent | received if name.startswith(tuple(keep))]
    layouts_of(compose(METHODS[method], PersonalizationSettings(keep=keep, share=False), ALL), tensors)


@pytest.mark.parametrize(("groups", "refused"), [("agreement", True), ("all", False), ("given", False)])
def test_groups_that_overlap_do_not_go_with_turns(groups, refused):
    aggregation = {"groups": groups, "members": [["a", "b"]] if groups == "given" else []}
    for values in ({"method": "rolora"}, {"method": "fedavg-lora", "baselines": ["rolora"]}):
        values |= {"data": DATA, "aggregation": aggregation}
        if not refused:
            make_config(values)
            continue
        with pytest.raises(ConfigError) as caught:
            make_config(values)
        [problem] = caught.value.problems
        assert problem.split(":")[0] in ("aggregation.groups", "baselines") and "'given'" in problem
    make_config({"data": DATA, "method": "own-prior", "baselines": ["rolora"]})  # its own groups are not the run's


def test_a_proximal_term_for_any_method():
    term = compose(METHODS["fedsa-lora"], PersonalizationSettings(proximal=0.3), ALL).proximal(None)
    assert term.strength == 0.3 and not term.moves


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"method": "fedprox-lora", "personalization": {"proximal": 0.1}}, "personalization.proximal"),
        ({"method": "pfedme-lora", "aggregation": {"weights": "equal"}}, "aggregation.weights"),
        ({"method": "fedrod-lora", "personalization": {"label_prior": True}}, "personalization.label_prior"),
    ],
)
def test_a_part_that_a_method_cannot_take_is_refused(values, setting):
    assert [problem.split(":")[0] for problem in problems(**values)] == [setting]


def test_a_part_without_meaning_for_the_task_is_left_out_with_a_sentence():
    values = {"task": "causal-lm", "data": {"source": "t.jsonl", "text": "text"}, "method": "fedavg-lora", **PARTS}
    config = make_config(values)
    left_out = [sentence.split(":")[0] for sentence in config.parts_left_out()]
    assert left_out == ["personalization.label_prior", "personalization.calibrate", "aggregation.weights"]
    method = config.composed_method()
    assert method.local_init is None and not method.calibrated
    assert make_config({**values, "method": "own-prior-lora"}).parts_left_out() == []


@pytest.mark.parametrize("groups", ["all", "agreement"])
def test_members_of_groups_that_are_not_given_are_refused_before_a_run_starts(groups):
    chosen = {"groups": groups, "members": [["a", "b"]]}
    [problem] = problems(method="fedavg-lora", aggregation=chosen)
    assert problem.startswith("aggregation.members:")
    assert make_config({"data": DATA, "method": "fedavg-lora", "aggregation": {**chosen, "groups": "given"}})


@pytest.mark.parametrize(
    ("method", "settings"),
    [("own-prior", ["init_std"]), ("fedavg-full", ["init_std", "train_norms"]), ("fedalt", [])],
)
def test_adapter_settings_without_effect_are_named(method, settings):
    values = {"data": DATA, "method": method, "adapter": {"init_std": 0.1, "train_norms": True}}
    left_out = [sentence.split(":")[0] for sentence in make_config(values).parts_left_out()]
    assert left_out == [f"adapter.{name}" for name in settings]
    assert make_config({"data": DATA, "method": method}).parts_left_out() == []


def test_a_method_that_sends_nothing_leaves_out_what_concerns_sending():
    config = make_config({"data": DATA, "method": "local", **PARTS})
    left_out = [sentence.split(":")[0] for sentence in config.parts_left_out()]
    assert left_out == ["personalization.interpolate", "aggregation.weights", "aggregation.groups"]
    method = config.composed_method()
    assert method.summarise is None and method.download is METHODS["local"].download
    assert method.local_init is not None and method.calibrated


def test_options_of_earlier_versions_still_set_the_parts():
    old = make_config({"data": DATA, "method": {"name": "own-prior", "smoothing": 0.5, "apart": 3.0}})
    assert old.personalization.prior_smoothing == 0.5 and old.aggregation.agreement == 3.0
    assert old.composed_method().local_init.smoothing == 0.5


def test_a_baseline_gets_the_parts_that_were_asked_for_and_its_own_otherwise():
    plain = make_config({"data": DATA, "method": "fedavg-lora"})
    assert plain.with_method("own-prior").personalization.label_prior
    asked = make_config({"data": DATA, "method": "fedavg-lora", "personalization": {"interpolate": 0.5}})
    assert asked.with_method("fedsa-lora").personalization.interpolate == 0.5
    assert not make_config({"data": DATA}).with_method("fedavg-lora").personalization.label_prior
