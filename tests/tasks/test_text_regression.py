"""Numbers as labels: loss, score, standardisation, and the way from a file to a served model."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import mean_squared_error, r2_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import trifed
from many_clients import ADAPTED, check_equal, clients_of, rounds_of, settings
from test_cli_help import call
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ConfigError, ModelError, RunError
from trifed.config.run import make_config
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import Examples
from trifed.export.export import export_client
from trifed.export.locate import locate_model
from trifed.federation.client_update import train_rounds
from trifed.federation.preparation import unscaled_numbers
from trifed.federation.training.dp_sgd import example_gradients
from trifed.federation.training.evaluation import evaluate
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

TASK = TASKS["text-regression"]
FP32 = TrainingSettings(precision="fp32", device="cpu")
SITES = ["amber", "basil", "coral"]
TOPICS = {
    "billing": ["invoice", "refund", "charge", "receipt", "payment"],
    "delivery": ["parcel", "courier", "address", "shipment", "doorstep"],
    "login": ["password", "account", "reset", "token", "browser"],
}
FILLER = [f"word{i:03d}" for i in range(170)]
MEAN, SCALE = 50.0, 20.0


def numbers_of(count, seed):
    """Texts with words of two topics among filler, and 50 + 10 a word of the first, - 10 a word of the second."""
    rng = np.random.default_rng(seed)
    texts, numbers = [], []
    for _ in range(count):
        up, down = rng.integers(0, 4, 2)
        words = [*rng.choice(TOPICS["billing"], up), *rng.choice(TOPICS["login"], down), *rng.choice(FILLER, 3)]
        rng.shuffle(words)
        texts.append(" ".join(words))
        numbers.append(MEAN + 10.0 * float(up - down))
    return texts, numbers


def examples(count, seed):
    texts, numbers = numbers_of(count, seed)
    return Examples({"text": texts}, np.zeros(count, np.int64), np.array(numbers)[:, None])


@pytest.fixture(scope="module")
def number_table(tmp_path_factory):
    path = tmp_path_factory.mktemp("numbers") / "numbers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "site"])
        for place, site in enumerate(SITES):
            writer.writerows([*row, site] for row in zip(*numbers_of(60, place), strict=True))
    return path


@pytest.fixture
def bench_for(tiny_encoder):
    def make(method="fedavg-lora", **model):
        given = (ModelSettings(name=str(tiny_encoder), max_length=32, **model), AdapterSettings(rank=4), FP32)
        return build_shared_model(TASK.load(str(tiny_encoder)), METHODS[method], ["all"], 0, given, TASK)

    return make


@pytest.fixture(scope="module")
def done(tiny_encoder, number_table, tmp_path_factory):
    """A finished run of numbers."""
    values = {
        "task": "text-regression",
        "method": "fedavg-lora",
        "baselines": [],
        "rounds": 6,
        "model": {"name": str(tiny_encoder), "max_length": 32, "target_mean": MEAN, "target_scale": SCALE},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"source": str(number_table), "clients": {"split": "column", "column": "site"}},
        "training": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32", "device": "cpu"},
    }
    heard = []
    result = trifed.run(make_config(values), tmp_path_factory.mktemp("number-runs") / "run", heard.append)
    return result, heard


# -- loss and score


def test_loss_and_score_are_those_of_scikit_learn(bench_for):
    shared_model = bench_for(target_mean=MEAN, target_scale=SCALE)
    data, rows = examples(13, 0), examples(13, 0).targets[:, 0]
    shared_model.load({n: t + 0.1 * torch.randn(t.shape) for n, t in shared_model.start.items()})
    encoded = shared_model.encode(data)
    with torch.no_grad():
        outputs = shared_model.model.eval()(encoded.batch(np.arange(13), torch.device("cpu")))[:, 0].numpy()
    scores = evaluate(shared_model.model, encoded, FP32)
    standardised = (rows - MEAN) / SCALE
    assert scores.loss == pytest.approx(mean_squared_error(standardised, outputs), rel=1e-4)
    assert scores.accuracy == pytest.approx(max(0, r2_score(standardised, outputs)), abs=1e-5)
    assert scores.right.mean() == pytest.approx(scores.accuracy) and not len(scores.predictions)


def test_a_good_fit_scores_its_r2_and_equal_numbers_all_or_nothing(bench_for):
    shared_model = bench_for()
    data = shared_model.encode(examples(4, 0))
    truth = data.targets[:, 0].astype(np.float64)
    errors = np.array([0.5, 0.0, 0.25, 1.0])
    parts = shared_model.model.shares_right(errors, data)
    assert parts.mean() == pytest.approx(r2_score(truth, truth + np.sqrt(errors)))
    assert 0 < parts.mean() < 1
    data.targets[:] = 3.0
    assert shared_model.model.shares_right(np.array([0.0, 0.5, 0.0, 2.0]), data).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("method", [name for name in ADAPTED if name in ("fedavg-lora", "own-prior", "ce-lora")])
def test_clients_train_together_as_alone(method, bench_for):
    shared_model = bench_for(method, target_mean=MEAN, target_scale=SCALE)
    rounds = rounds_of(shared_model, clients_of(shared_model, [11, 3, 0, 9], examples))
    alone = [train_rounds(shared_model, [each], settings())[0] for each in rounds]
    check_equal(alone, train_rounds(shared_model, rounds, settings()))
    assert not shared_model.alone


def test_gradients_of_many_examples_in_one_pass_are_those_of_each_alone(bench_for):
    shared_model = bench_for(target_mean=MEAN, target_scale=SCALE)
    shared_model.model.eval()
    data, cpu, named = shared_model.encode(examples(5, 1)), torch.device("cpu"), shared_model.parameters
    losses, together = example_gradients(shared_model.model, named, data.batch(np.arange(5), cpu), torch.float32)
    for row in range(5):
        loss = shared_model.model.loss(data.batch(np.array([row]), cpu))
        torch.testing.assert_close(losses[row], loss.detach())
        for found, alone in zip(together, torch.autograd.grad(loss, list(named.values())), strict=True):
            torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-6)


def test_numbers_that_no_model_learns_name_the_settings(bench_for):
    data = examples(4, 0)
    data.targets[2] = 1e300
    with pytest.raises(ModelError, match=r"model\.target_scale.*1e\+300"):
        bench_for().encode(data)


# -- settings


def config(**values):
    return make_config({"task": "text-regression", "data": {"source": "x.csv"}, **values})


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"metrics": ["f1_macro"]}, "metrics"),
        ({"training": {"class_weights": "balanced"}}, "training.class_weights"),
        ({"data": {"source": "x.csv", "label": ""}}, "data.label"),
        ({"data": {"source": "x.csv", "labels": ["1", "2"]}}, "data.labels"),
        ({"data": {"source": "x.csv", "clients": {"split": "pathological"}}}, "data.clients.split"),
        ({"model": {"target_scale": 0}}, "model.target_scale"),
        ({"model": {"target_mean": float("nan")}}, "model.target_mean"),
    ],
)
def test_what_has_no_meaning_for_numbers_is_refused(values, name):
    with pytest.raises(ConfigError) as caught:
        config(**values)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [name]


def test_parts_that_need_a_label_are_left_out_and_label_rows_are_examples():
    own = config(method="own-prior")
    method = own.composed_method()
    assert method.local_init is None and not method.calibrated and method.sends("head.bias")
    assert own.parts_left_out() == []  # the method's own
    said = config(
        method="fedavg-lora", personalization={"label_prior": True}, aggregation={"weights": "label-rows"}
    )
    assert len(said.parts_left_out()) == 2


def test_numbers_far_from_standard_are_told_and_settings_proposed(number_table, tiny_encoder):
    values = {"source": str(number_table), "clients": {"split": "column", "column": "site"}}
    data = trifed.data.make_clients(trifed.data.DataSettings.model_validate(values), 0, TASK.roles)
    [text] = unscaled_numbers(ModelSettings(), data)
    assert "model.target_mean = " in text and "model.target_scale = " in text
    assert not list(unscaled_numbers(ModelSettings(target_mean=MEAN, target_scale=SCALE), data))


# -- a run


def test_a_run_learns_and_tells_a_score_between_0_and_1(done):
    result, heard = done
    assert result.summary["metric"] == "R²" and not result.summary["controls"]
    curve = result.summary["curve"]
    assert all(0 <= point["mean"] <= 1 for point in curve)
    assert curve[-1]["mean"] > 0.3 and curve[-1]["training_loss"] < 0.7
    assert not [event for event in heard if event["event"] == "trouble"]
    kept = json.loads((result.path / "predictions.json").read_text())
    for client in result.summary["clients"]:
        assert np.mean(kept["right"][client["name"]]) == pytest.approx(client["now"]["accuracy"])


def test_own_prior_shares_its_head(number_table, tiny_encoder, tmp_path):
    """By label rows only the first row of a head would be averaged; here there is one, of numbers."""
    values = {
        "task": "text-regression",
        "method": "own-prior",
        "baselines": [],
        "rounds": 1,
        "model": {"name": str(tiny_encoder), "max_length": 32, "target_mean": MEAN, "target_scale": SCALE},
        "adapter": {"rank": 4},
        "data": {"source": str(number_table), "clients": {"split": "column", "column": "site"}},
        "training": {"steps": 2, "batch_size": 8, "precision": "fp32", "device": "cpu"},
        "privacy": {"few_tokens": "allow"},
    }
    result = trifed.run(make_config(values), tmp_path / "run")
    [event] = [e for e in trifed.federation.run_folder.RunFolder(result.path).events()
               if e["event"] == "trained" and e["client"] == "amber"]  # fmt: skip
    assert {"head.weight", "head.bias"} <= set(event["up"])


def test_python_predicts_numbers_in_their_own_units(done, number_table):
    result, _ = done
    regressor = result.regressor("amber")
    texts, numbers = numbers_of(40, 9)
    found = regressor.predict(texts)
    assert found.shape == (40,) and found.dtype == np.float64
    assert spearmanr(found, numbers).statistic > 0.5
    assert 20 < found.mean() < 80
    with pytest.raises(RunError, match="load_regressor"):
        result.client("amber")


def test_commands_predict_and_evaluate(done, tmp_path, capsys, monkeypatch):
    result, _ = done
    texts, numbers = numbers_of(30, 11)
    with (tmp_path / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *zip(texts, numbers, strict=True)])
    said = call(capsys, monkeypatch, "predict", result.path, "--client", "amber", tmp_path / "new.csv")
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert said.code == 0 and list(rows[0]) == ["row", "text", "number"]
    predicted = np.array([float(row["number"]) for row in rows])
    np.testing.assert_allclose(predicted, result.regressor("amber").predict(texts), rtol=1e-4)
    said = call(
        capsys, monkeypatch, "evaluate", result.path, tmp_path / "new.csv", "--client", "all", "--format", "json"
    )
    first = json.loads(said.out)["clients"][0]
    assert first["r2"] == pytest.approx(r2_score(numbers, predicted), abs=1e-4)
    assert first["mse"] == pytest.approx(mean_squared_error(numbers, predicted), rel=1e-3)
    assert first["spearman"] == pytest.approx(spearmanr(numbers, predicted).statistic, abs=1e-6)
    for form in ("table", "csv"):
        assert call(capsys, monkeypatch, "evaluate", result.path, tmp_path / "new.csv", "--client", "amber",
                    "--format", form).code == 0  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text,label\na,high\n", "row 1: column 'label' holds 'high'"),
        ("text,label\na,\n", "row 1: the number in column 'label' is missing"),
        ("text,label\na,nan\n", "finite"),
        ("text,score\na,1\n", "no column 'label'"),
    ],
)
def test_a_file_that_cannot_be_evaluated_is_one_message(done, content, says, tmp_path, capsys, monkeypatch):
    (tmp_path / "new.csv").write_text(content)
    said = call(capsys, monkeypatch, "evaluate", done[0].path, tmp_path / "new.csv", "--client", "amber")
    assert said.code == 2 and says in " ".join(said.err.split()) and "Traceback" not in said.err


def test_one_row_or_equal_numbers_have_no_correlation(done, tmp_path, capsys, monkeypatch):
    for content in ("text,label\ninvoice,1\n", "text,label\ninvoice,1\nparcel,1\n"):
        (tmp_path / "new.csv").write_text(content)
        said = call(capsys, monkeypatch, "evaluate", done[0].path, tmp_path / "new.csv", "--client", "amber",
                    "--format", "json")  # fmt: skip
        [found] = json.loads(said.out)["clients"]
        assert said.code == 0 and found["pearson"] is None and found["accuracy"] == 0


# -- exports


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_export_returns_the_numbers_without_trifed(done, form, tmp_path, run_card):
    result, _ = done
    texts = numbers_of(3, 21)[0]
    folder = export_client(result.path, "amber", form, tmp_path / form)
    expected = result.regressor("amber").predict(texts)
    found = json.loads(run_card(folder, f"estimate({texts!r}).tolist()"))
    np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-4, atol=1e-3)
    assert locate_model(folder, None).columns.target == "number"
    np.testing.assert_allclose(trifed.load_regressor(folder).predict(texts), expected, rtol=1e-4, atol=1e-3)


def test_a_native_export_is_a_regression_of_transformers(tiny_encoder, number_table, tmp_path):
    values = {
        "task": "text-regression",
        "method": "fedavg-lora",
        "baselines": [],
        "rounds": 1,
        "model": {"name": str(tiny_encoder), "max_length": 32, "pooling": "pooler", "target_mean": 50.0,
                  "target_scale": 20.0},
        "adapter": {"rank": 4},
        "data": {"source": str(number_table), "clients": {"split": "column", "column": "site"}},
        "training": {"steps": 2, "batch_size": 8, "precision": "fp32", "device": "cpu"},
    }  # fmt: skip
    result = trifed.run(make_config(values), tmp_path / "run")
    folder = export_client(result.path, "amber", "merged", tmp_path / "merged")
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    texts = numbers_of(3, 21)[0]
    with torch.no_grad():
        found = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].numpy()
    np.testing.assert_allclose(found, result.regressor("amber").predict(texts), rtol=1e-4, atol=1e-3)
