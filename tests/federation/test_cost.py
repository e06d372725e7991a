"""What `trifed cost` counts: closed forms, and the bytes in the event log of a real run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import RobertaForSequenceClassification

from many_clients import ALIKE
from trifed import similarity as sim
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ModelError
from trifed.config.settings import WireSettings
from trifed.federation.compression import make_compression
from trifed.federation.cost import Cost, MethodCost, estimate_cost
from trifed.federation.messages import ENVELOPE
from trifed.federation.plain_lora import plain_lora_bytes, plain_lora_settings
from trifed.federation.summary_cost import most_components, summary_sizes
from trifed.methods import METHODS
from trifed.tasks.shapes import SHAPES, build_on_meta, shape_config


@pytest.fixture(scope="module")
def costs():
    """`costs("llama-7b", labels=3, only=["ce-lora"], rank=4)`: an estimate, made once.

    `only`: the methods that are counted; all of them take seconds on a model with billions of weights.
    """
    known: dict[str, Cost] = {}

    def get(name: str, labels: int | None = None, only: Sequence[str] = tuple(METHODS), **adapter: object) -> Cost:
        key = repr((name, labels, only, adapter))
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("trifed.federation.cost.METHODS", {method: METHODS[method] for method in only})
                known[key] = estimate_cost(name, AdapterSettings(**adapter), labels)
        return known[key]

    return get


FEW = ["ce-lora", "fedavg-lora"]


def of(cost: Cost, method: str) -> MethodCost:
    return next(item for item in cost.methods if item.method == method)


def test_every_method_is_there(costs):
    assert [item.method for item in costs("roberta-base").methods] == list(METHODS)


# 12 blocks x query and value, rank 8; A (8, 768) and B (768, 8). Our head is one layer, (2, 768) and 2 biases.
def test_roberta_base_in_closed_form(costs):
    cost = costs("roberta-base", rank=8)
    cores, factors, head = 24 * 8**2, 24 * 8 * (768 + 768), 2 * 768 + 2
    assert (cores, factors) == (1536, 294_912)
    assert (cost.layers, cost.targets) == (24, ("query", "value"))
    ce, fed, alone = (of(cost, name) for name in ("ce-lora", "fedavg-lora", "local"))
    assert (ce.sent_values, ce.head_values, ce.trained_values) == (cores, 0, factors + cores + head)
    assert (fed.sent_values, fed.head_values, fed.bytes_up) == (factors + head, head, 4 * (factors + head))
    assert (alone.sent_values, alone.bytes_up, alone.bytes_down, alone.times_fewer) == (0, 0, 0, None)
    assert ce.times_fewer == (factors + head) / cores
    assert (ce.trains, ce.sends, fed.sends, alone.sends) == (
        ("A", "B", "C", "head"), ("C",), ("A", "B", "head"), (),
    )  # fmt: skip


def test_a_method_whose_rounds_take_turns_counts_their_mean(costs):
    """Of layers (3072, 768) and (768, 3072) too, where A and B differ in size."""
    cost = costs("roberta-base", rank=8, target_modules="all-linear")
    fed, half = of(cost, "fedavg-lora"), of(cost, "rolora")
    assert half.head_values == fed.head_values == 2 * 768 + 2
    assert half.sent_values - half.head_values == (fed.sent_values - fed.head_values) / 2
    assert half.bytes_up == half.bytes_down == 4 * half.sent_values and half.trained_values == fed.trained_values


def test_a_rival_with_the_classification_head_of_roberta_sends_887042(costs):
    """FedPETuning sends RoBERTa's own head, a dense layer before the output; ours is the output layer alone."""
    with torch.device("meta"):
        model = RobertaForSequenceClassification(shape_config("roberta-base"))
    theirs = sum(param.numel() for param in model.classifier.parameters())
    fed = of(costs("roberta-base", rank=8), "fedavg-lora")
    assert fed.sent_values - fed.head_values + theirs == 887_042
    assert theirs - fed.head_values == 768 * 768 + 768


def test_llama_7b_sends_1024_times_fewer(costs):
    cost = costs("llama-7b", only=FEW, rank=8)
    ce, fed = of(cost, "ce-lora"), of(cost, "fedavg-lora")
    assert (ce.sent_values, fed.sent_values) == (64 * 8**2, 64 * 8 * (4096 + 4096)) == (4096, 4_194_304)
    assert ce.times_fewer == 1024
    assert cost.labels == 0 and fed.head_values == 0
    assert "head" not in fed.trains


def test_mistral_7b_has_narrow_values(costs):
    # v_proj maps 4096 to 8 x 128: grouped queries.
    assert of(costs("mistral-7b", only=FEW, rank=8), "fedavg-lora").sent_values == 32 * 8 * (
        2 * 4096 + 4096 + 1024
    )


@pytest.mark.slow
def test_every_method_is_counted_on_a_language_model_of_billions_of_weights(costs):
    """With grouped queries and without a head; v_proj (4096, 1024) has other factors than q_proj (4096, 4096)."""
    cost = costs("mistral-7b", rank=8)
    assert [item.method for item in cost.methods] == list(METHODS)
    assert all(item.head_values == 0 and "head" not in item.sends for item in cost.methods)
    assert {item.method for item in cost.methods if not item.sent_values} == {"local"}
    assert (of(cost, "fed-xs").sent_values, of(cost, "fedavg-full").sent_values) == (64 * 8**2, cost.base_values)


def test_both_towers_of_clip(costs):
    cost = costs("clip-vit-b32", rank=8, labels=0)
    assert cost.layers == 2 * (12 + 12)
    assert of(cost, "ce-lora").sent_values == 48 * 64
    assert of(cost, "fedavg-lora").sent_values == 2 * 12 * 8 * (512 + 512) + 2 * 12 * 8 * (768 + 768)
    ten = costs("clip-vit-b32", rank=8, labels=10)
    assert ten.features == 0
    assert ten.lora_values - cost.lora_values == 10  # a bias for each class, and no linear head


# Published sizes: huggyllama/llama-7b and mistralai/Mistral-7B-v0.1 whole, openai/clip-vit-base-patch32 whole,
# RoBERTa and ViT without a task's head, with the pooler.
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("roberta-base", 124_645_632),
        ("roberta-large", 355_359_744),
        ("llama-7b", 6_738_415_616),
        ("mistral-7b", 7_241_732_096),
        ("clip-vit-b32", 151_277_313),
        ("vit-base", 86_389_248),
    ],
)
def test_the_named_shapes_have_the_published_sizes(costs, name, weights):
    assert costs(name, only=FEW, rank=8).base_values == weights


def test_no_named_shape_is_left_out_above():
    assert sorted(SHAPES) == [
        "clip-vit-b32",
        "llama-7b",
        "mistral-7b",
        "roberta-base",
        "roberta-large",
        "vit-base",
    ]


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_what_is_sent_grows_with_the_square_of_the_rank(costs, rank):
    cost = costs("vit-base", rank=rank, target_modules="all-linear", labels=5)
    assert of(cost, "ce-lora").sent_values == cost.layers * rank**2
    assert (
        cost.layers == 12 * 6
    )  # query, key, value, output, two of the MLP; not the pooler's, which nothing reads


def test_all_linear_leaves_the_output_layer_of_a_language_model_alone(costs):
    assert costs("llama-7b", only=["local"], target_modules="all-linear").layers == 32 * 7


def test_a_language_model_with_a_head_does_without_its_output_layer(costs):
    whole, classifier = (costs("llama-7b", labels, only=FEW, rank=8) for labels in (None, 3))
    assert whole.base_values - classifier.base_values == 32_000 * 4096
    assert of(classifier, "fedavg-lora").head_values == 3 * 4096 + 3


COUNTED = set(METHODS) - ALIKE - {"ce-lora-authors"} | {"rolora"}
"""Methods whose runs are counted here; `ce-lora-authors` has a test of its own."""


@pytest.mark.parametrize("method", sorted(COUNTED))
def test_the_numbers_are_those_of_a_runs_event_log(method, finished, costs, tiny_encoder):
    run = finished(method)
    item = of(costs(str(tiny_encoder), labels=3, rank=4), method)
    trained = [event for event in run.events if event["event"] == "trained"]
    uploads = [event["up"] for event in trained]
    downloads = [event["down"] for event in trained if event["round"] > 1]
    assert len(uploads) == 9 and len(downloads) == 6
    for messages, counted in ((uploads, item.bytes_up), (downloads, item.bytes_down)):
        assert {sum(size for name, size in m.items() if name != ENVELOPE) for m in messages} == {counted}
    heads = {sum(size for name, size in up.items() if name.startswith("head.")) for up in uploads}
    if item.bits == 32:
        assert heads == {4 * item.head_values}
    else:  # every bit, and a step size in 16 for each 256 numbers
        (head,) = heads
        assert head == pytest.approx(item.head_values * item.bits / 8 + 2 * -(-item.head_values // 256), abs=1)
    environment = (run.path / "environment.json").read_text(encoding="utf-8")
    assert f'"trained_values": {item.trained_values}' in environment
    assert f'"sent_values": {item.sent_values}' in environment


def test_an_opening_is_that_of_a_runs_event_log(finished, costs, tiny_encoder):
    # 2 blocks x query and value: gradients (32, 32) up; A (4, 32), B (32, 4) and C (4, 4) down.
    methods = [name for name, method in METHODS.items() if method.shared_projections]
    assert methods
    for method in methods:
        (once,) = of(costs(str(tiny_encoder), labels=3, rank=4), method).once
        assert (once.up, once.down) == (4 * 4 * 32 * 32, 4 * 4 * (4 * 32 + 32 * 4 + 4 * 4))
        events = [event for event in finished(method).events if event["event"] == "opening"]
        for way, counted in (("up", once.up), ("down", once.down)):
            sent = [sum(size for name, size in e[way].items() if name != ENVELOPE) for e in events if way in e]
            assert sent == [counted] * 3


def test_plain_lora_is_compared_at_the_same_bits(monkeypatch):
    """roberta-base, one bit: A and B have whole blocks of 256 values, the head of 3 x 768 has 9, its bias one."""
    few = {name: METHODS[name] for name in ("own-prior", "fedavg-lora")}
    monkeypatch.setattr("trifed.federation.cost.METHODS", few)
    cost = estimate_cost("roberta-base", labels=3)
    values = 24 * 8 * (768 + 768) + 3 * 768
    plain = -(-(values + 3) // 8) + 2 * (values // 256 + 1)
    assert of(cost, "own-prior").times_fewer == plain / of(cost, "own-prior").bytes_up
    told = estimate_cost("roberta-base", AdapterSettings(rank=8), labels=3, bits=1)
    assert of(told, "fedavg-lora").bytes_up == plain and of(told, "fedavg-lora").times_fewer == 1
    sealed = estimate_cost("roberta-base", AdapterSettings(rank=8), labels=3, bits=1, sealed=10)
    assert of(sealed, "fedavg-lora").times_fewer == 1


def test_plain_lora_has_its_own_rank_unless_the_run_names_one():
    own, alike = METHODS["own-prior"], METHODS["ce-lora"]
    assert plain_lora_settings(own, AdapterSettings(**own.defaults["adapter"])) == AdapterSettings()
    assert plain_lora_settings(own, AdapterSettings(rank=4)).rank == 4
    assert plain_lora_settings(alike, AdapterSettings(rank=16, target_modules=["query"])) == AdapterSettings(
        rank=16, target_modules=["query"]
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
def test_plain_lora_takes_the_bytes_of_its_message(bits):
    layout = tuple((f"{n}.{part}", (8, 384)) for n in range(4) for part in "AB")
    encoding = make_compression((*layout, ("head", (12, 384)), ("bias", (12,))), WireSettings(bits=bits))
    assert plain_lora_bytes(8 * 8 * 384 + 12 * 384 + 12, bits) == sum(encoding.sizes.values())


def test_a_method_has_its_own_rank_and_bits_unless_told_otherwise(costs):
    """roberta-base: 24 cores of 32 x 32 and a head of 3 x 768, a bit each; 2 bytes for each 256 numbers."""
    own = of(costs("roberta-base", labels=3), "own-prior")
    assert (own.rank, own.bits, own.sent_values) == (32, 1, 24 * 1024 + 3 * 768)
    assert own.bytes_up == (24 * 1024 + 3 * 768) // 8 + 2 * (24 * 4 + 9)
    assert of(costs("roberta-base", labels=3, rank=8), "own-prior").rank == 8
    told = estimate_cost("roberta-base", labels=3, bits=4)
    assert {item.bits for item in told.methods} == {4}
    assert of(told, "ce-lora").bytes_up == 24 * (64 // 2 + 2)


def test_a_sealed_sum_takes_the_bits_of_its_clients():
    """Ten clients: 5 bits a number; down 1 bit, and the terms: steps, and 4 + 32 + 64 bytes for each client."""
    cost = estimate_cost("roberta-base", AdapterSettings(), labels=3, sealed=10)
    own, blocks = of(cost, "own-prior"), 24 * 4 + 9
    assert (own.sealed, own.once) == (10, ())
    assert own.bytes_up == (24 * 1024 + 3 * 768) * 5 // 8 + 2 * blocks
    down = (24 * 1024 + 3 * 768) // 8 + 2 * blocks
    assert own.bytes_down == down + 2 * blocks + 10 * (4 + 32 + 64) + 3 * 2 + 10 * 4
    assert of(cost, "ce-lora").sealed is None
    assert of(cost, "ce-lora").bytes_up == of(estimate_cost("roberta-base", labels=3), "ce-lora").bytes_up


def test_the_whole_model_is_all_of_it_but_the_pooler(costs):
    full = of(costs("roberta-base"), "fedavg-full")
    assert full.sent_values == full.trained_values == 124_645_632 - (768 * 768 + 768) + full.head_values
    assert (full.sends, full.adapter) == (("head", "base"), "none")
    assert of(costs("llama-7b", only=["fedavg-full"]), "fedavg-full").sent_values == 6_738_415_616


@pytest.mark.parametrize("method", sorted(set(METHODS) - ALIKE))
def test_the_rival_is_the_runs_own(method, make_bench, costs, tiny_encoder):
    rank = plain_lora_settings(METHODS[method], AdapterSettings(rank=4)).rank
    assert 4 * costs(str(tiny_encoder), labels=3, rank=rank).lora_values == make_bench(method).lora_bytes


def test_the_envelope_is_about_that_of_a_run(finished, costs, tiny_encoder):
    envelope = costs(str(tiny_encoder), labels=3, rank=4).envelope
    trained = [event for event in finished("ce-lora").events if event["event"] == "trained"]
    assert max(abs(event["up"][ENVELOPE] - envelope) for event in trained) <= 32


SUMMARISED = sorted(
    name for name, method in METHODS.items() if method.summarise and not method.options().raw_summary()
)


@pytest.mark.parametrize("method", SUMMARISED)
def test_the_summary_of_a_run_has_the_counted_size(method, finished, costs, tiny_encoder):
    make = METHODS[method].summarise
    assert make is not None
    sizes = summary_sizes(make, METHODS[method].options())
    events = [event for event in finished(method).events if event["event"] == "summary"]
    assert len(events) == 3
    for event in events:
        up = event["up"]
        components, labels = up["counts"] // 8, up["class_counts"] // 8
        assert sum(size for name, size in up.items() if name != ENVELOPE) == sizes.total(labels, components)
        assert up[ENVELOPE] == pytest.approx(sizes.envelope, abs=32)


@pytest.mark.parametrize("method", SUMMARISED)
def test_a_summary_is_at_most_as_large_as_the_cost_says(method, finished, tiny_encoder, monkeypatch):
    """The limit for a client's labels and examples is at most two components more than a run sends."""
    run = finished(method)
    monkeypatch.setattr("trifed.federation.cost.METHODS", {method: METHODS[method]})
    split = json.loads((run.path / "split.json").read_text(encoding="utf-8"))
    for client in split["clients"]:
        (event,) = [e for e in run.events if e["event"] == "summary" and e["client"] == client["name"]]
        sent = sum(event["up"].values())
        labels = len([count for count in client["train_labels"].values() if count])
        adapter = AdapterSettings(rank=4)
        cost = estimate_cost(str(tiny_encoder), adapter, labels=labels, examples=client["train"])
        (once,) = of(cost, method).once
        assert once.at_most and once.down == 0
        assert sent - 32 <= once.up + once.envelope <= sent + 2 * 528 + 32


def test_few_examples_and_few_labels_limit_the_components_of_a_summary():
    assert [most_components(12, examples, 20) for examples in (19, 40, 170, 10_000)] == [0, 2, 8, 36]
    assert most_components(2, 1000, 20) == 6


def test_the_summarys_sizes_are_those_of_its_arrays():
    make = METHODS["ce-lora"].summarise
    assert make is not None
    sizes = summary_sizes(make, METHODS["ce-lora"].options())
    assert (sizes.fixed, sizes.label, sizes.component) == (8, 16, 528)
    features = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)).numpy()
    labels = torch.arange(200).numpy() % 4
    summary = sim.summarise(sim.project(features, dim=64, seed=0), labels, seed=0)
    assert summary.nbytes == sizes.total(4, len(summary.labels))


def test_a_folder_needs_no_weights(tmp_path, costs, tiny_encoder):
    config = (tiny_encoder / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    assert replace(estimate_cost(str(tmp_path)), model="") == replace(estimate_cost(str(tiny_encoder)), model="")


def test_nothing_is_allocated():
    model = build_on_meta(shape_config("llama-7b"), whole_lm=True)
    assert {param.device.type for param in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("model", "adapter", "words"),
    [
        ("roberta-bse", {}, ["'roberta-bse'", "did you mean 'roberta-base'"]),
        ("llama7b", {}, ["did you mean 'llama-7b'", "mistral-7b"]),
        ("./nosuch", {}, ["there is no folder './nosuch'"]),
        ("roberta-base", {"rank": 769}, ["adapter.rank", "769", "at most 768"]),
        ("clip-vit-b32", {"rank": 513}, ["adapter.rank", "513", "text_model", "at most 512"]),
        ("roberta-base", {"target_modules": ["q_proj"]}, ["'q_proj'", "query"]),
        ("roberta-base", {"target_modules": []}, ["empty list"]),
    ],
)
def test_what_cannot_be_counted_is_refused(model, adapter, words):
    with pytest.raises(ModelError) as caught:
        estimate_cost(model, AdapterSettings(**adapter))
    for word in words:
        assert word in str(caught.value)


def test_a_folder_without_a_configuration(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        estimate_cost(str(tmp_path))


def test_an_architecture_without_known_targets_names_its_layers(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "fnet", "hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 50}'
    )
    with pytest.raises(ModelError, match=r"'fnet'.* dense"):
        estimate_cost(str(tmp_path))
