"""Three tiny model families, built from configurations: nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from trifed.adapters import TriLoraConfig, adapted_layers

IDS = torch.arange(2 * 7).reshape(2, 7) % 40


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # PEFT 0.21 asks transformers 5.23 for a property under its old name each time a model is wrapped.
    old_name = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(old_name)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """At these sizes threads only wait for each other: several times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Family:
    """`new()` builds a base model of 2 blocks; `targets` are its adapted layers, two in each block."""

    name: str
    new: Callable[[], nn.Module]
    targets: tuple[str, ...]

    def base(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.new().eval()

    def adapted(self, base: nn.Module | None = None, seed: int = 0, **settings: object) -> PeftModel:
        base = self.base() if base is None else base
        torch.manual_seed(seed)
        return get_peft_model(base, self.config(**settings)).eval()

    def config(self, **settings: object) -> TriLoraConfig:
        return TriLoraConfig(**{"r": 4, "target_modules": list(self.targets), "lora_alpha": 10, **settings})


def _bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.2,
        )
    )


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            max_position_embeddings=16,
            initializer_range=0.2,
        )
    )


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=16,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


FAMILIES = {
    "bert": Family("bert", _bert, ("query", "value")),
    "llama": Family("llama", _llama, ("q_proj", "v_proj")),  # v_proj has 8 outputs and 16 inputs
    "gpt2": Family("gpt2", _gpt2, ("c_attn", "c_fc")),  # Conv1D, 16 to 48 and 16 to 64
}


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def families() -> list[Family]:
    return list(FAMILIES.values())


@pytest.fixture
def ids() -> torch.Tensor:
    return IDS


@pytest.fixture
def bert() -> Family:
    return FAMILIES["bert"]


@pytest.fixture
def llama() -> Family:
    return FAMILIES["llama"]


@pytest.fixture(params=["all", "core"])
def train(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def logits() -> Callable[[nn.Module], torch.Tensor]:
    def run(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=IDS).logits

    return run


@pytest.fixture
def randomise() -> Callable[..., PeftModel]:
    """Give every A, B and C of an adapter random values, as if it had been trained."""

    def run(model: PeftModel, adapter_name: str = "default", seed: int = 7) -> PeftModel:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, layer in adapted_layers(model, adapter_name):
                for factor in layer.factors(adapter_name):
                    factor.copy_(torch.randn(factor.shape, generator=generator) * 0.3)
        return model

    return run


@pytest.fixture
def loss() -> Callable[[nn.Module], torch.Tensor]:
    def run(model: nn.Module) -> torch.Tensor:
        return model(input_ids=IDS).logits.square().mean()

    return run
