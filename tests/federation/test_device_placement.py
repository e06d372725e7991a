"""Where a base lies. Two GPUs are not to be had in tests; `tests/tasks/test_gpu.py` has one and the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from transformers import BertConfig, BertModel

from trifed import make_config
from trifed.common.errors import ConfigError, ModelError, RunError
from trifed.config.settings import TrainingSettings
from trifed.data import text_examples
from trifed.federation.training.batches import RoundRandom
from trifed.federation.training.device_placement import device_map, narrow_frozen_weights, place_model
from trifed.federation.training.local_training import LocalTraining, train_locally

pytestmark = pytest.mark.filterwarnings("ignore:.*not available:UserWarning")


@pytest.fixture
def model():
    """Embeddings of about 0.1 MB and four blocks of about 0.2 MB."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    return BertModel(BertConfig(vocab_size=100, max_position_embeddings=64, **sizes))


def test_blocks_stay_whole_and_follow_each_other(model):
    found = device_map(model, {0: 500_000, 1: 500_000, 2: 500_000})
    blocks = [found[f"encoder.layer.{number}"] for number in range(4)]
    assert blocks == sorted(blocks) and len(set(blocks)) > 1
    assert found["embeddings"] == 0 and set(found.values()) <= {0, 1, 2}


def test_a_model_that_all_gpus_together_do_not_hold_is_refused(model):
    with pytest.raises(ModelError, match=r"'encoder\.layer.*'nf4'"):
        device_map(model, {0: 300_000, 1: 300_000})


def test_spread_over_one_device_it_is_the_same_model(model):
    ids = torch.arange(12).reshape(2, 6)
    model.eval()
    with torch.no_grad():
        before = model(ids).last_hidden_state
        dispatch_model(model, device_map={"embeddings": "cpu", "encoder": "cpu", "pooler": "cpu"})
        torch.testing.assert_close(model(ids).last_hidden_state, before)


def test_few_bits_are_not_spread(model, monkeypatch):
    monkeypatch.setattr("trifed.federation.training.local_training.torch.cuda.device_count", lambda: 2)
    model.is_quantized = True
    with pytest.raises(ModelError, match=r"'cuda:all'.*nf4"):
        place_model(model, TrainingSettings(device="cuda:all"))


def test_without_a_gpu(model, monkeypatch):
    monkeypatch.setattr("trifed.federation.training.local_training.torch.cuda.device_count", lambda: 0)
    with pytest.raises(RunError, match=r"'cuda:all'.*0 CUDA devices"):
        place_model(model, TrainingSettings(device="cuda:all"))


def test_other_words_are_refused():
    values = {"data": {"source": "a.csv"}, "training": {"device": "cuda:many"}}
    with pytest.raises(ConfigError) as refused:
        make_config(values)
    [problem] = refused.value.problems
    assert problem.startswith("training.device: ")
    assert all(f"'{device}'" in problem for device in ("cuda:many", "auto", "cpu", "cuda", "cuda:1", "cuda:all"))


@pytest.mark.parametrize("method", ["fedavg-lora", "fed-sb"])
def test_weights_kept_in_bfloat16_change_no_bit(make_bench, method):
    """Losses, tensors and the first gradient; the embeddings and the norms stay in float32."""
    found = []
    for narrow in (False, True):
        shared_model = make_bench(method, training={"precision": "bf16", "batch_size": 4})
        training = TrainingSettings(precision="bf16", device="cpu", batch_size=4)
        changed = narrow_frozen_weights(shared_model.model, training) if narrow else 0
        data = shared_model.encode(text_examples(["one word", "two more words"] * 5, None, np.arange(10) % 3))
        gradient = shared_model.first_gradient(data, training)
        shared_model.load(shared_model.start)
        job = LocalTraining(shared_model.parameters, data, RoundRandom.of(0, 1, 0), 0, 9, {})
        done = train_locally(shared_model.model, [job], training)[0]
        found.append((done.loss, shared_model.take(), gradient))
    types = {name.rsplit(".", 2)[-2]: p.dtype for name, p in shared_model.model.named_parameters()}
    assert changed > 10 and types["LayerNorm"] == types["word_embeddings"] == torch.float32
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[1][1][name], tensor) for name, tensor in found[0][1].items())
    assert all(np.array_equal(found[1][2][name], values) for name, values in found[0][2].items())
    assert narrow_frozen_weights(shared_model.model, TrainingSettings(precision="fp32", device="cpu")) == 0
