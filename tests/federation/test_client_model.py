"""A client's folder is a model that works elsewhere."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trifed import load_client
from trifed.common.errors import AdapterError, RunError, TrifedError
from trifed.data import make_clients

METHODS = ["ce-lora", "fedavg-lora", "local"]
EVERY_KIND = [*METHODS, "fed-xs", "fed-sb", "fedavg-full"]


@pytest.mark.parametrize("method", EVERY_KIND)
def test_a_clients_folder_gives_the_predictions_of_the_run(method, finished):
    # The whole model learns nothing at the adapters' rate.
    done = finished(method, training={"learning_rate": 1e-3 if method == "fedavg-full" else 1e-2})
    told = json.loads((done.path / "predictions.json").read_text(encoding="utf-8"))
    data = make_clients(done.config.data, done.config.seed)
    for client in data.clients:
        classifier = load_client(done.path / "clients" / client.name)
        assert classifier.labels == data.label_names == ["billing", "delivery", "login"]
        predicted = [classifier.labels.index(label) for label in classifier.predict(client.test.texts)]
        assert predicted == told["model"][client.name]
        assert client.test.labels.tolist() == told["labels"][client.name]
    assert len({label for labels in told["model"].values() for label in labels}) > 1


def test_clients_differ_where_the_method_is_personal(finished):
    texts = [f"invoice word{i:03d} parcel" for i in range(5)]
    for method, same in (("fedavg-lora", True), ("ce-lora", False), ("local", False)):
        done = finished(method)
        first, second = (done.result.client(name).probabilities(texts) for name in ("amber", "basil"))
        assert np.array_equal(first, second) == same
        np.testing.assert_allclose(first.sum(1), 1, rtol=1e-5)


def test_probabilities_do_not_depend_on_the_batch_nor_on_the_order(finished):
    classifier = finished("ce-lora").result.client("amber")
    texts = ["invoice", "parcel word001 word002 word003 word004 word005 word006 word007 word008", "reset token"]
    together = classifier.probabilities(texts)
    for place, text in enumerate(texts):
        np.testing.assert_allclose(classifier.probabilities([text])[0], together[place], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(classifier.probabilities(texts[::-1], batch_size=1), together[::-1], rtol=1e-4)
    assert classifier.probabilities([]).shape == (0, 3) and classifier.predict([]) == []


PLAIN = """
import sys
sys.modules["trifed"] = None  # importing it would fail
import json
from pathlib import Path
import numpy as np, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

base, folder, texts, out = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder).eval()
batch = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")
head = load_file(folder / "head.safetensors")
with torch.no_grad():
    hidden = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
logits = (hidden * mask).sum(1) / mask.sum(1) @ head["weight"].T + head["bias"]
np.save(out, logits.numpy())
"""


def test_plain_lora_loads_by_plain_peft_without_this_package(finished, tiny_encoder, tmp_path, plain_python):
    folder = finished("local").path / "clients" / "coral"
    texts = ["invoice refund word001", "parcel", "account password reset token word002 word003 word004"]
    words = [str(tiny_encoder), str(folder), json.dumps(texts), str(tmp_path / "out.npy")]
    plain_python(PLAIN, tmp_path, *words)
    logits = np.load(tmp_path / "out.npy")
    assert logits.std() > 0
    own = load_client(folder).probabilities(texts)
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(-1).numpy(), own, rtol=1e-5, atol=1e-7)


@pytest.fixture
def client_copy(finished, tmp_path):
    def copy(method):
        shutil.copytree(finished(method).path / "clients" / "amber", tmp_path / "amber")
        return tmp_path / "amber"

    return copy


def test_a_folder_without_a_client_is_refused(tmp_path, finished):
    with pytest.raises(RunError, match="no client's model here"):
        load_client(tmp_path)
    with pytest.raises(RunError, match="no client's model here"):
        finished("local").result.client("nobody")


def test_another_base_model_is_refused_and_a_moved_one_can_be_named(client_copy, finished, tiny_encoder, tmp_path):
    folder = client_copy("ce-lora")
    moved = tmp_path / "moved"
    shutil.copytree(tiny_encoder, moved)
    texts = ["invoice word001"]
    assert np.array_equal(
        load_client(folder, str(moved)).probabilities(texts), load_client(folder).probabilities(texts)
    )
    weights = load_file(moved / "model.safetensors")
    weights = {name: tensor + 1e-3 for name, tensor in weights.items()}
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="other weights"):
        load_client(folder, str(moved))


def test_a_tri_matrix_folder_without_its_weights_is_refused(client_copy):
    folder = client_copy("ce-lora")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        load_client(folder)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "head.safetensors", "classifier.json"]
)
def test_a_missing_or_damaged_file_is_a_mistake_that_can_be_mended(method, name, client_copy):
    folder = client_copy(method)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrifedError):
        load_client(folder)
    (folder / name).unlink()
    with pytest.raises(TrifedError):
        load_client(folder)
