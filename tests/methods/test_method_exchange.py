"""What each method trains and sends, by name."""

from __future__ import annotations

import numpy as np
import pytest

from trifed.methods import METHODS
from trifed.methods.base import Method, ServerContext
from trifed.methods.packing import pack, unpack

LAYERS = [f"encoder.layer.{i}.attention.self.{part}" for i in range(2) for part in ("query", "value")]
FACTORS = {f"{layer}.lora_{factor}.weight" for layer in LAYERS for factor in "AB"}
CORES = {f"{layer}.lora_C.weight" for layer in LAYERS}
LOCAL = {f"{layer}.lora_local_{factor}.weight" for layer in LAYERS for factor in "AB"}
MIXERS = {f"{layer}.lora_mixer.weight" for layer in LAYERS}
HEAD = {"head.weight", "head.bias"}

A, B = ({name for name in FACTORS if f".lora_{factor}." in name} for factor in "AB")
BLOCK = {
    f"{part}.{kind}"
    for part in (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
    )
    for kind in ("weight", "bias")
}  # fmt: skip
WHOLE = {f"encoder.layer.{i}.{name}" for i in range(2) for name in BLOCK} | {
    "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight", "embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias",
}  # fmt: skip

NORMS = {
    f"{name.removesuffix(kind)}modules_to_save.{kind}"
    for name in WHOLE if ".LayerNorm." in name
    for kind in ("weight", "bias") if name.endswith(kind)
}  # fmt: skip

EXCHANGE = {
    "ce-lora": (FACTORS | CORES | HEAD, CORES),
    "ce-lora-authors": (FACTORS | CORES | HEAD | NORMS, CORES),
    "co-lora-like": (CORES | HEAD, CORES),
    "fed-sb": (CORES | HEAD, CORES | HEAD),
    "fed-xs": (CORES | HEAD, CORES | HEAD),
    "fedalt": (FACTORS | MIXERS | HEAD, FACTORS),
    "fedavg-full": (WHOLE | HEAD, WHOLE | HEAD),
    "fedavg-lora": (FACTORS | HEAD, FACTORS | HEAD),
    "feddpa": (FACTORS | LOCAL | HEAD | {"base_model.lora_share.weight"}, FACTORS | HEAD),
    "fedavg-tri": (FACTORS | CORES | HEAD, CORES),
    "fedper-lora": (FACTORS | HEAD, FACTORS),
    "fedex-lora": (FACTORS | HEAD, FACTORS | HEAD),
    "fedprox-lora": (FACTORS | HEAD, FACTORS | HEAD),
    "fedrod-lora": (FACTORS | HEAD | {"personal.weight", "personal.bias", "prior.bias"}, FACTORS | HEAD),
    "fedsa-lora": (FACTORS | HEAD, A),
    "ffa-lora": (B | HEAD, B | HEAD),
    "local": (FACTORS | HEAD, set()),
    "own-prior": (CORES | HEAD, CORES | {"head.weight"}),
    "own-prior-lora": (FACTORS | HEAD, FACTORS | {"head.weight"}),
    "pfedme-lora": (FACTORS | HEAD, FACTORS | HEAD),
    "rolora": (FACTORS | HEAD, FACTORS | HEAD),
}
"""Method: what trains, what is sent, on a BERT of two blocks; of `rolora` in two rounds."""


def test_every_method_has_its_row():
    assert set(EXCHANGE) == set(METHODS)


@pytest.mark.parametrize("name", sorted(EXCHANGE))
def test_exactly_these_tensors_train_and_travel(name, make_bench):
    trains, sends = EXCHANGE[name]
    shared_model = make_bench(name)
    assert {name for name, param in shared_model.parameters.items() if param.requires_grad} == trains
    assert {tensor for tensor, _ in shared_model.layout} == sends
    asking = {id(param) for param in shared_model.model.parameters() if param.requires_grad}
    assert asking == {id(shared_model.parameters[name]) for name in trains}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_found_by_its_name_and_sends_only_what_it_trains(name, make_bench):
    method, shared_model = METHODS[name], make_bench(name)
    assert isinstance(method, Method) and method.name == name and method.citation
    assert shared_model.parameters, "a method that trains nothing"
    assert {tensor for tensor, _ in shared_model.layout} <= set(shared_model.parameters)
    assert method.options().model_dump() == method.options(**method.options().model_dump()).model_dump()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_there_is_nothing_to_download_before_round_one(name, make_bench):
    method, shared_model = METHODS[name], make_bench(name)
    if method.summarise is None:
        context = ServerContext(2, shared_model.layout, shared_model.start_values)
        assert method.download(method.start(method.options(), context), 0) is None


def test_unpack_inverts_pack_in_the_layouts_order():
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([9], np.float32)}
    layout = (("b", (2, 3)), ("a", (1,)))
    values = pack(tensors, layout)
    assert values.tolist() == [0, 1, 2, 3, 4, 5, 9] and values.dtype == np.float32
    again = unpack(values, layout)
    assert list(again) == ["b", "a"] and all(np.array_equal(again[n], tensors[n]) for n in tensors)
    assert pack(tensors, ()).shape == (0,)
