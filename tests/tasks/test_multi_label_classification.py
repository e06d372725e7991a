"""Any number of labels for each text: loss, score, predictions, and the way from a file to a served model."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import trifed
from many_clients import check_equal, clients_of, rounds_of, settings
from test_cli_help import call
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ConfigError, RunError
from trifed.config.run import make_config
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import Examples
from trifed.export.export import export_client
from trifed.federation.client_update import train_rounds
from trifed.federation.training.dp_sgd import example_gradients
from trifed.federation.training.evaluation import evaluate
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

TASK = TASKS["multi-label-classification"]
FP32 = TrainingSettings(precision="fp32", device="cpu")
SITES = ["amber", "basil", "coral"]
TOPICS = {
    "billing": ["invoice", "refund", "charge", "receipt", "payment"],
    "delivery": ["parcel", "courier", "address", "shipment", "doorstep"],
    "login": ["password", "account", "reset", "token", "browser"],
}
FILLER = [f"word{i:03d}" for i in range(170)]
NAMES = list(TOPICS)


def lists_of(count, seed):
    """Texts with words of none to all topics among filler, and those topics."""
    rng = np.random.default_rng(seed)
    texts, lists = [], []
    for _ in range(count):
        labels = [name for name in NAMES if rng.random() < 0.4]
        words = [word for name in labels for word in rng.choice(TOPICS[name], 2)]
        words += list(rng.choice(FILLER, 3))
        rng.shuffle(words)
        texts.append(" ".join(words))
        lists.append(labels)
    return texts, lists


def examples(count, seed):
    texts, lists = lists_of(count, seed)
    targets = np.array([[name in labels for name in NAMES] for labels in lists], bool).reshape(count, len(NAMES))
    return Examples({"text": texts}, np.zeros(count, np.int64), targets)


def table(path, kind, seed=0):
    rows = [
        (text, labels, site)
        for place, site in enumerate(SITES)
        for text, labels in zip(*lists_of(60, seed + place), strict=True)
    ]
    if kind == "csv":
        with path.open("w", newline="") as file:
            lines = [[text, "; ".join(labels), site] for text, labels, site in rows]
            csv.writer(file).writerows([["text", "label", "site"], *lines])
    else:
        named = [dict(zip(("text", "label", "site"), row, strict=True)) for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in named))
    return path


def values_for(path, tiny_encoder, **changes):
    return {
        "task": "multi-label-classification",
        "method": "fedavg-lora",
        "baselines": [],
        "rounds": 6,
        "model": {"name": str(tiny_encoder), "max_length": 32},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"source": str(path), "clients": {"split": "column", "column": "site"}},
        "training": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32", "device": "cpu"},
        **changes,
    }


@pytest.fixture
def bench_for(tiny_encoder):
    def make(method="fedavg-lora"):
        given = (ModelSettings(name=str(tiny_encoder), max_length=32), AdapterSettings(rank=4), FP32)
        return build_shared_model(TASK.load(str(tiny_encoder)), METHODS[method], NAMES, 0, given, TASK)

    return make


@pytest.fixture(scope="module")
def done(tiny_encoder, tmp_path_factory):
    """A finished run of lists of labels."""
    home = tmp_path_factory.mktemp("label-lists")
    return trifed.run(make_config(values_for(table(home / "t.jsonl", "jsonl"), tiny_encoder)), home / "run")


# -- loss and score


def test_loss_and_score_are_those_of_torch_and_scikit_learn(bench_for):
    shared_model, data = bench_for(), examples(17, 3)
    rng = torch.Generator().manual_seed(0)
    shared_model.load({n: t + torch.randn(t.shape, generator=rng) for n, t in shared_model.start.items()})
    encoded = shared_model.encode(data)
    with torch.no_grad():
        logits = shared_model.model.eval()(encoded.batch(np.arange(17), torch.device("cpu")))
    scores = evaluate(shared_model.model, encoded, FP32)
    expected = binary_cross_entropy_with_logits(logits, torch.from_numpy(data.targets).float())
    assert scores.loss == pytest.approx(float(expected), rel=1e-4)
    predicted = logits.numpy() > 0
    assert predicted.any() and not predicted.all()
    assert scores.accuracy == pytest.approx(f1_score(data.targets, predicted, average="samples", zero_division=1))
    np.testing.assert_allclose(scores.probabilities, logits.sigmoid().numpy(), rtol=1e-4)
    assert not len(scores.predictions)


@pytest.mark.parametrize("method", ["fedavg-lora", "own-prior", "ce-lora"])
def test_clients_train_together_as_alone(method, bench_for):
    shared_model = bench_for(method)
    rounds = rounds_of(shared_model, clients_of(shared_model, [11, 3, 0, 9], examples))
    alone = [train_rounds(shared_model, [each], settings())[0] for each in rounds]
    check_equal(alone, train_rounds(shared_model, rounds, settings()))
    assert not shared_model.alone


def test_gradients_of_many_examples_in_one_pass_are_those_of_each_alone(bench_for):
    shared_model = bench_for()
    shared_model.model.eval()
    data, cpu, named = shared_model.encode(examples(5, 1)), torch.device("cpu"), shared_model.parameters
    losses, together = example_gradients(shared_model.model, named, data.batch(np.arange(5), cpu), torch.float32)
    for row in range(5):
        loss = shared_model.model.loss(data.batch(np.array([row]), cpu))
        torch.testing.assert_close(losses[row], loss.detach())
        for found, alone in zip(together, torch.autograd.grad(loss, list(named.values())), strict=True):
            torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-6)


# -- settings


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"metrics": ["auroc"]}, "metrics"),
        ({"training": {"class_weights": "balanced"}}, "training.class_weights"),
        ({"data": {"source": "x.csv", "label": ""}}, "data.label"),
        ({"data": {"source": "x.csv", "label_separator": ""}}, "data.label_separator"),
        ({"data": {"source": "x.csv", "clients": {"split": "pathological"}}}, "data.clients.split"),
    ],
)
def test_what_has_no_meaning_for_lists_is_refused(values, name):
    with pytest.raises(ConfigError) as caught:
        make_config({"task": "multi-label-classification", "data": {"source": "x.csv"}, **values})
    assert [problem.split(":")[0] for problem in caught.value.problems] == [name]


# -- a run


def test_a_run_learns_and_tells_a_score_between_0_and_1(done):
    assert done.summary["metric"] == "F1 per example" and not done.summary["controls"]
    curve = done.summary["curve"]
    assert all(0 <= point["mean"] <= 1 for point in curve)
    assert curve[-1]["mean"] > 0.6 > curve[0]["mean"]
    assert done.split["label_names"] == sorted(NAMES)


def test_a_separator_in_csv_gives_the_same_run(done, tiny_encoder, tmp_path):
    values = values_for(table(tmp_path / "t.csv", "csv"), tiny_encoder)
    values["data"] |= {"label_separator": ";", "separator": ","}
    assert trifed.run(make_config(values), tmp_path / "run").summary["curve"] == done.summary["curve"]


def test_every_row_of_the_head_is_averaged_by_own_prior(tiny_encoder, tmp_path):
    """By label rows, which need one label for each example, all but the first would never be."""
    config = make_config(
        values_for(
            table(tmp_path / "t.jsonl", "jsonl"),
            tiny_encoder,
            method="own-prior",
            rounds=2,
            adapter={"rank": 4},
            training={"steps": 2, "batch_size": 8, "precision": "fp32", "device": "cpu"},
            personalization={"interpolate": 1.0},
            privacy={"few_tokens": "allow"},
        )
    )
    result = trifed.run(config, tmp_path / "run")
    heads = [result.multi_label_classifier(name).model.head.weight.detach() for name in SITES]
    for head in heads[1:]:
        torch.testing.assert_close(head, heads[0])


def test_one_label_in_all_the_data_is_enough(tiny_encoder, tmp_path):
    rows = [{"text": f"invoice word{n:03d}", "label": ["x"] * (n % 2), "site": f"s{n % 2}"} for n in range(40)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = values_for(tmp_path / "t.jsonl", tiny_encoder, rounds=1)
    result = trifed.run(make_config(values), tmp_path / "run")
    found = result.multi_label_classifier("s0").predict_proba(["invoice", "parcel"])
    assert found.shape == (2, 1) and ((found > 0) & (found < 1)).all()


def test_python_predicts_all_labels_over_one_half(done):
    classifier = done.multi_label_classifier("amber")
    texts, lists = lists_of(40, 9)
    probabilities, found = classifier.predict_proba(texts), classifier.predict(texts)
    assert classifier.classes_.tolist() == sorted(NAMES)
    for row, labels in zip(probabilities, found, strict=True):
        assert set(labels) == {name for name, p in zip(sorted(NAMES), row, strict=True) if p > 0.5}
    right = np.mean([set(one) == set(other) for one, other in zip(found, lists, strict=True)])
    assert right > 0.3
    with pytest.raises(RunError, match="load_multi_label_classifier"):
        done.client("amber")


def test_commands_predict_and_evaluate(done, tmp_path, capsys, monkeypatch):
    texts, lists = lists_of(30, 11)
    rows = [{"text": text, "label": labels} for text, labels in zip(texts, lists, strict=True)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predicted = done.multi_label_classifier("amber").predict(texts)
    said = call(capsys, monkeypatch, "predict", done.path, "--client", "amber", tmp_path / "new.jsonl")
    found = list(csv.DictReader(io.StringIO(said.out)))
    assert said.code == 0 and [row["labels"].split(";") if row["labels"] else [] for row in found] == predicted
    said = call(capsys, monkeypatch, "predict", done.path, "--client", "amber", tmp_path / "new.jsonl",
                "--format", "jsonl")  # fmt: skip
    assert [json.loads(line)["labels"] for line in said.out.splitlines()] == predicted
    said = call(capsys, monkeypatch, "evaluate", done.path, tmp_path / "new.jsonl", "--client", "amber",
                "--format", "json")  # fmt: skip
    [scores] = json.loads(said.out)["clients"]
    true, guessed = (
        np.array([[name in labels for name in sorted(NAMES)] for labels in some]) for some in (lists, predicted)
    )
    for average in ("micro", "macro"):
        expected = f1_score(true, guessed, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(expected)
    assert scores["accuracy"] == pytest.approx(f1_score(true, guessed, average="samples", zero_division=1))
    assert scores["exact"] == pytest.approx((true == guessed).all(axis=1).mean())
    for form, client in (("table", "amber"), ("table", "all"), ("csv", "all")):
        assert call(capsys, monkeypatch, "evaluate", done.path, tmp_path / "new.jsonl", "--client", client,
                    "--format", form).code == 0  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a", "label": ["bill"]}', "line 1: got the label 'bill'; expected"),
        ('{"text": "a", "label": "billing"}', "data.label_separator"),
        ('{"text": "a", "label": null}', "is missing"),
        ('{"text": "a", "tags": []}', "no column 'label'"),
    ],
)
def test_a_file_that_cannot_be_evaluated_is_one_message(done, content, says, tmp_path, capsys, monkeypatch):
    (tmp_path / "new.jsonl").write_text(content + "\n")
    said = call(capsys, monkeypatch, "evaluate", done.path, tmp_path / "new.jsonl", "--client", "amber")
    assert said.code == 2 and says in " ".join(said.err.split()) and "Traceback" not in said.err


# -- exports


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_export_returns_the_probabilities_without_trifed(done, form, tmp_path, run_card):
    texts = lists_of(3, 21)[0]
    folder = export_client(done.path, "amber", form, tmp_path / form)
    expected = done.multi_label_classifier("amber").predict_proba(texts)
    found = json.loads(run_card(folder, f"classify({texts!r}).tolist()"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        trifed.load_multi_label_classifier(folder).predict_proba(texts), expected, rtol=1e-4, atol=1e-5
    )


def test_a_native_export_is_a_multi_label_classifier_of_transformers(tiny_encoder, tmp_path):
    values = values_for(table(tmp_path / "t.jsonl", "jsonl"), tiny_encoder, rounds=1)
    values["model"]["pooling"] = "pooler"
    result = trifed.run(make_config(values), tmp_path / "run")
    folder = export_client(result.path, "amber", "merged", tmp_path / "merged")
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == sorted(NAMES)
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    texts = lists_of(3, 21)[0]
    with torch.no_grad():
        found = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits.sigmoid().numpy()
    expected = result.multi_label_classifier("amber").predict_proba(texts)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
