"""Clients of every task train in one pass with the numbers that they have alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from trifed.adapters.settings import AdapterSettings
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import Examples, as_png
from trifed.federation.client_update import ClientDataset, ClientState, RoundTraining, train_rounds
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

WORDS = ["invoice", "parcel", "password", "refund", "courier", "account"]


def images(count, seed):
    rng = np.random.default_rng(seed)
    made = [Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)) for _ in range(count)]
    return Examples({"image": [as_png(image) for image in made]}, rng.integers(0, 3, count))


def prompts(count, seed):
    rng = np.random.default_rng(seed)
    rows = [[" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)] for _ in range(2)]
    return Examples({"prompt": rows[0], "answer": rows[1]}, np.zeros(count, np.int64))


def mirrored(count, seed):
    """Prompts and answers whose longest are equally long over all clients, but not at each client."""
    short, long = [["ab" * 5] * count, ["cde" * 10] * count]
    rows = (short, long) if seed == 1 else (long, short)
    return Examples({"prompt": rows[0], "answer": rows[1]}, np.zeros(count, np.int64))


def tagged(count, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.choice(WORDS, rng.integers(2, 9)).tolist() for _ in range(count)]
    tags = [rng.integers(0, 3, len(words)).tolist() for words in rows]
    inputs = {"text": list(map(json.dumps, rows)), "tags": list(map(json.dumps, tags))}
    return Examples(inputs, np.zeros(count, np.int64))


def captions(count, seed):
    rows = [" ".join(np.random.default_rng((seed, n)).choice(WORDS, 2 + seed)) for n in range(count)]
    return Examples({**images(count, seed).inputs, "text": rows}, np.zeros(count, np.int64))


TASK_CASES = {
    "causal-lm": ("tiny_language", "llama", prompts, {"max_length": 64}),
    "sequence-to-sequence": ("tiny_pairs", "t5", prompts, {"max_length": 64}),
    "sequence-to-sequence, positions": ("tiny_pairs", "bart", prompts, {"max_length": 64}),
    "sequence-to-sequence, equally long": ("tiny_pairs", "t5", mirrored, {"max_length": 64}),
    "token-classification": ("tiny_encoder", "bert", tagged, {"max_length": 16}),
    "image-classification": ("tiny_vision", "vit", images, {"augment": "flip-crop"}),
    "image-text": ("tiny_towers", "clip", images, {"augment": "flip"}),
    "image-text-pairs": ("tiny_towers", "clip", captions, {"max_length": 16}),
}


@pytest.mark.parametrize("method", ["fedavg-lora", "own-prior"])
@pytest.mark.parametrize("case", TASK_CASES)
def test_every_task_has_the_numbers_of_training_alone(request, case, method):
    fixture, kind, make, model = TASK_CASES[case]
    task, found = case.partition(",")[0], request.getfixturevalue(fixture)
    folder = found(kind) if callable(found) else found
    chosen = TrainingSettings(batch_size=4, learning_rate=1e-2, precision="fp32", device="cpu")
    given = (ModelSettings(name=str(folder), **model), AdapterSettings(rank=4, dropout=0.1), chosen)
    base = TASKS[task].load(str(folder), given[0].dtype)
    shared_model = build_shared_model(base, METHODS[method], ["a", "b", "c"], 0, given, TASKS[task])
    rounds = []
    for index, count in enumerate((9, 5, 6)):
        data = shared_model.encode(make(count, index))
        client = ClientDataset(index, f"c{index}", data, data, data)
        rounds.append(RoundTraining(client, ClientState(dict(shared_model.start), {}, 0), None, 3, 1, 1))
    alone = [train_rounds(shared_model, [each], chosen)[0] for each in rounds]
    together = train_rounds(shared_model, rounds, chosen)
    assert not shared_model.alone
    for one, other in zip(alone, together, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        for name, tensor in one.state.tensors.items():
            torch.testing.assert_close(other.state.tensors[name], tensor, rtol=2e-3, atol=2e-4)
