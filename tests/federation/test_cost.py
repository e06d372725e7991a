"""What `trifed cost` counts, beside closed forms; and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import RobertaForSequenceClassification

from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ModelError
from trifed.config.settings import WireSettings
from trifed.federation.compression import make_compression
from trifed.federation.cost import Cost, MethodCost, estimate_cost
from trifed.federation.plain_lora import plain_lora_bytes
from trifed.methods import METHODS
from trifed.methods.plain_lora import plain_lora_settings
from trifed.tasks.shapes import SHAPES, build_on_meta, shape_config

FEW = ["ce-lora", "fedavg-lora", "local"]
"""Methods that a test counts by hand. To count all of them takes seconds."""


def of(cost: Cost, method: str) -> MethodCost:
    return next(item for item in cost.methods if item.method == method)


def test_every_method_is_there(costs):
    assert [item.method for item in costs("roberta-base").methods] == list(METHODS)


# 12 blocks x query and value, rank 8; A (8, 768) and B (768, 8). Our head is one layer, (2, 768) and 2 biases.
def test_roberta_base_in_closed_form(costs):
    cost = costs("roberta-base", only=FEW, rank=8)
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
    cost = costs("roberta-base", only=["fedavg-lora", "rolora"], rank=8, target_modules="all-linear")
    fed, half = of(cost, "fedavg-lora"), of(cost, "rolora")
    assert half.head_values == fed.head_values == 2 * 768 + 2
    assert half.sent_values - half.head_values == (fed.sent_values - fed.head_values) / 2
    assert half.bytes_up == half.bytes_down == 4 * half.sent_values and half.trained_values == fed.trained_values


def test_a_rival_with_the_classification_head_of_roberta_sends_887042(costs):
    """FedPETuning sends RoBERTa's own head, a dense layer before the output; ours is the output layer alone."""
    with torch.device("meta"):
        model = RobertaForSequenceClassification(shape_config("roberta-base"))
    theirs = sum(param.numel() for param in model.classifier.parameters())
    fed = of(costs("roberta-base", only=FEW, rank=8), "fedavg-lora")
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
    cost = costs("clip-vit-b32", only=FEW, rank=8, labels=0)
    assert cost.layers == 2 * (12 + 12)
    assert of(cost, "ce-lora").sent_values == 48 * 64
    assert of(cost, "fedavg-lora").sent_values == 2 * 12 * 8 * (512 + 512) + 2 * 12 * 8 * (768 + 768)
    ten = costs("clip-vit-b32", only=FEW, rank=8, labels=10)
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
    cost = costs("vit-base", only=FEW, rank=rank, target_modules="all-linear", labels=5)
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
    own = of(costs("roberta-base", labels=3, only=["own-prior"]), "own-prior")
    assert (own.rank, own.bits, own.sent_values) == (32, 1, 24 * 1024 + 3 * 768)
    assert own.bytes_up == (24 * 1024 + 3 * 768) // 8 + 2 * (24 * 4 + 9)
    assert of(costs("roberta-base", labels=3, only=["own-prior"], rank=8), "own-prior").rank == 8
    told = estimate_cost("roberta-base", labels=3, bits=4)
    assert {item.bits for item in told.methods} == {4}
    assert of(told, "ce-lora").bytes_up == 24 * (64 // 2 + 2)


def test_a_sealed_sum_takes_the_bits_of_its_clients(monkeypatch):
    """Ten clients: 5 bits a number; down 1 bit, and the terms: steps, and 4 + 32 + 64 bytes for each client."""
    few = {name: METHODS[name] for name in ("own-prior", "ce-lora", "fedavg-lora")}
    monkeypatch.setattr("trifed.federation.cost.METHODS", few)
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
