"""Tags of words: the token that stands for a word, whole runs, predictions, exports, and inputs that go wrong."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer
from typer.testing import CliRunner

import trifed
from trifed import export_client, load_tagger, make_config, run
from trifed.adapters.settings import AdapterSettings
from trifed.cli.app import app
from trifed.common.errors import ConfigError, DataError, ModelError, RunError, TrifedError
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import DataSettings, Examples, make_clients
from trifed.data.roles import TAGGED
from trifed.federation.training.evaluation import evaluate
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS
from trifed.tasks.token_classification import first_tokens

TASK = TASKS["token-classification"]
FP32 = TrainingSettings(precision="fp32", device="cpu", eval_batch_size=2)
TAGS = ["B-BILL", "B-POST", "I-BILL", "I-POST", "O"]
KINDS = {"BILL": ["invoice", "refund"], "POST": ["parcel", "courier"]}


def call(*words, stdin=None):
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def sentence(rng, kind):
    """Three to eight words of filler, and one or two words of a kind in a row."""
    words = [f"word{n:03d}" for n in rng.integers(0, 20, rng.integers(3, 9))]
    entity = KINDS[kind][: rng.integers(1, 3)]
    place = int(rng.integers(0, len(words)))
    tags = ["O"] * len(words)
    words[place:place] = entity
    tags[place:place] = [f"{'I' if n else 'B'}-{kind}" for n in range(len(entity))]
    return words, tags


def rows_of(count=60, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words, tags = sentence(rng, list(KINDS)[number % 2])
        rows.append({"tokens": words, "ner": tags, "site": ("north", "south")[number % 4 < 2]})
    return rows


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    path = tmp_path_factory.mktemp("sentences") / "sentences.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_of())), encoding="utf-8")
    return path


def values(folder, source, **more):
    return {
        "task": "token-classification",
        "rounds": 2,
        "model": {"name": str(folder), "max_length": 32},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {
            "source": str(source), "text": "tokens", "label": "ner",
            "clients": {"split": "column", "column": "site"},
        },
        "training": {"batch_size": 8, "learning_rate": 2e-2, "precision": "fp32", "device": "cpu", "epochs": 4},
        "metrics": ["f1_entities"],
        **more,
    }  # fmt: skip


def model_of(folder, tags=TAGS, **model):
    settings = (ModelSettings(name=str(folder), **{"max_length": 32, **model}), AdapterSettings(rank=4), FP32)
    return build_shared_model(TASK.load(str(folder)), METHODS["local"], tags, 0, settings, TASK)


def examples(words, tags=None):
    inputs = {"text": list(map(json.dumps, words))}
    if tags is not None:
        inputs["tags"] = list(map(json.dumps, tags))
    return Examples(inputs, np.zeros(len(words), np.int64))


# -- which token stands for a word


def test_the_first_token_stands_for_its_word_and_no_other(tiny_encoder):
    shared_model = model_of(tiny_encoder)
    data = shared_model.encode(examples([["invoice", "re-fund.", "parcel"], ["word001"]], [[0, 1, 2], [4]]))
    tokens = shared_model.base.processor.convert_ids_to_tokens(data.ids[0])
    assert tokens[:2] == ["[CLS]", "invoice"] and tokens[-2:] == ["parcel", "[SEP]"] and len(tokens) == 8
    assert data.more["tags"] == [[0, 1, 2, 0, 0, 0, 3, 0], [0, 5, 0]]
    assert data.words == [[0, 1, 2], [0]]


@pytest.mark.parametrize(
    ("offsets", "words", "found"),
    [
        ([(0, 0), (0, 2), (3, 4), (4, 5), (0, 0)], ["ab", "cd"], [(0, 1), (1, 2)]),
        ([(0, 2), (2, 5)], ["ab", "cd"], [(0, 0), (1, 1)]),  # the token has the space before its word
        ([(0, 1), (0, 1), (2, 3)], ["é", "b"], [(0, 0), (1, 2)]),  # a sign in two tokens
        ([(0, 2), (5, 6)], ["ab", "\u200b", "c"], [(0, 0), (2, 1)]),  # a word without any token
        ([(0, 2), (2, 3), (3, 5)], ["ab", "cd"], [(0, 0), (1, 2)]),  # the space has a token of its own
        ([(0, 5), (6, 7)], ["ab", "cd", "e"], [(0, 0), (2, 1)]),  # a token of two words
        ([], ["ab"], []),
    ],
)
def test_first_tokens(offsets, words, found):
    assert list(first_tokens(offsets, words)) == found


def test_words_that_a_byte_level_tokenizer_splits_have_their_first_token(tiny_language, tiny_encoder):
    base = TASK.load(str(tiny_encoder))
    bytes_of = AutoTokenizer.from_pretrained(tiny_language())
    bytes_of.pad_token = bytes_of.eos_token
    other = type(base)(base.model, bytes_of, base.source, base.fingerprint)
    base.model.resize_token_embeddings(300)
    words = ["né", "\U0001f600", "漢字", "a"]
    data = TASK.encode(other, examples([words], [[0, 1, 2, 3]]), ModelSettings(max_length=64))
    marked = [(place, mark) for place, mark in enumerate(data.more["tags"][0]) if mark]
    assert [mark for _, mark in marked] == [1, 2, 3, 4] and data.words == [[0, 1, 2, 3]]
    ends = [*(place for place, _ in marked[1:]), len(data.ids[0])]
    decoded = [bytes_of.decode(data.ids[0][place:end]) for (place, _), end in zip(marked, ends, strict=True)]
    assert [text.strip() for text in decoded] == words


def test_the_loss_and_the_shares_are_of_words_alone(tiny_encoder):
    shared_model = model_of(tiny_encoder)
    words, tags = [["invoice", "word001"], ["re-fund", "parcel", "word002"]], [[0, 4], [0, 1, 4]]
    data = shared_model.encode(examples(words, tags))
    model = shared_model.model.eval()
    batch = data.batch(np.arange(2), torch.device("cpu"))
    with torch.no_grad():
        logits = model(batch)
        chosen = torch.cat([logits[0, [1, 2]], logits[1, [1, 4, 5]]])
        expected = torch.nn.functional.cross_entropy(chosen, torch.tensor([0, 4, 0, 1, 4]))
        torch.testing.assert_close(model.loss(batch), expected)
    scores = evaluate(model, data, FP32)
    assert scores.loss == pytest.approx(float(expected), rel=1e-5) and model.predictions(batch) == 5
    best = chosen.argmax(-1).tolist()
    right = [a == b for a, b in zip(best, [0, 4, 0, 1, 4], strict=True)]
    assert scores.right.tolist() == pytest.approx([np.mean(right[:2]), np.mean(right[2:])])
    assert scores.entities[:, 0].tolist() == [1, 2]


def test_long_sentences_are_cut_in_training_and_read_in_parts_afterwards(tiny_encoder, sentences, tmp_path):
    result = run(make_config(values(tiny_encoder, sentences, method="local", rounds=1)), tmp_path / "run")
    tagger = result.tagger("north")
    words = [word for row in rows_of(20, seed=5) for word in row["tokens"]]
    data = tagger.encode({"text": [json.dumps(words)]})
    assert data.cut == 1 and len(data.ids[0]) == 32 and len(data.words[0]) == 30
    [found] = tagger.tag([words])
    assert len(found) == len(words) > 100
    assert found[:30] == tagger.tag([words[:30]])[0] and found[30:60] == tagger.tag([words[30:60]])[0]


# -- runs


@pytest.mark.parametrize("method", ["own-prior", "fedavg-lora", "ce-lora", "fedavg-full", "local"])
def test_a_run_learns(method, tiny_encoder, sentences, tmp_path):
    result = run(make_config(values(tiny_encoder, sentences, method=method)), tmp_path / "run")
    assert result.split["label_names"] == TAGS and result.summary["metric"] == "word accuracy"
    assert result.summary["controls"] == {}
    for client in result.summary["clients"]:
        assert client["now"]["loss"] < client["before"]["loss"]
        assert 0 <= client["now"]["f1_entities"] <= 1 and client["now"]["accuracy"] > 0.6
    counts = result.split["clients"][0]["train_labels"]
    assert counts["O"] > counts["B-BILL"] >= counts["I-BILL"]
    if method in ("own-prior", "fedavg-lora"):  # the head is averaged as a whole, every tag's row of it
        heads = [result.tagger(name).model.head.weight for name in ("north", "south")]
        assert (heads[0] - heads[1]).abs().max() < 0.5 and heads[0].abs().min() > 0
    kept = json.loads((result.path / "predictions.json").read_text())
    assert all(0 <= share <= 1 for shares in kept["right"].values() for share in shares)


def test_every_row_of_the_head_is_shared_with_the_defaults(tiny_encoder, sentences, tmp_path):
    """own-prior weights the head's rows by label counts, which sentences do not have."""
    given = values(tiny_encoder, sentences, rounds=1)
    given["wire"], given["personalization"] = {"bits": 32}, {"interpolate": 1.0}
    config = make_config(given)
    assert config.composed_method().local_init is None and not config.composed_method().calibrated
    result = run(config, tmp_path / "run")
    north, south = (result.tagger(name).model.head for name in ("north", "south"))
    start = model_of(tiny_encoder).model.head
    assert torch.equal(north.weight, south.weight) and torch.equal(north.bias, south.bias)
    assert ((north.weight - start.weight).abs().sum(1) > 0).all()


def test_a_report_shows_both_metrics(tiny_encoder, sentences, tmp_path):
    result = run(make_config(values(tiny_encoder, sentences, method="local")), tmp_path / "run")
    page = trifed.report(result.path, tmp_path / "report.md").read_text()
    assert "word accuracy" in page and r"f1\_entities" in page
    assert result.clients["f1_entities"].notna().all()


def test_a_parquet_file_of_class_labels_has_their_names(tmp_path):
    rows = rows_of(20)
    table = pa.table({
        "tokens": [row["tokens"] for row in rows],
        "ner": [[TAGS.index(tag) for tag in row["ner"]] for row in rows],
    })  # fmt: skip
    for number, lists in enumerate(("List", "Sequence")):
        feature = {"_type": lists, "feature": {"_type": "ClassLabel", "names": TAGS}}
        info = json.dumps({"info": {"features": {"ner": feature}}})
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table.replace_schema_metadata({"huggingface": info}), path)
        settings = DataSettings(source=str(path), text="tokens", label="ner", clients={"split": "iid", "count": 1})
        assert make_clients(settings, 0, TAGGED).label_names == TAGS


def test_files_of_words_and_tags_are_sites(tiny_encoder, tmp_path):
    for site, rows in (("north", rows_of(30)), ("south", rows_of(30, seed=1))):
        text = "-DOCSTART- -X- O\n\n# a comment\n"
        pairs = [zip(row["tokens"], row["ner"], strict=True) for row in rows]
        text += "\n\n".join("\n".join(f"{word} NN {tag}" for word, tag in pair) for pair in pairs)
        (tmp_path / f"{site}.conll").write_text(text + "\n", encoding="utf-8")
    given = values(tiny_encoder, tmp_path, method="local", rounds=1)
    given["data"] = {"source": str(tmp_path)}
    result = run(make_config(given), tmp_path / "run")
    assert [client["name"] for client in result.summary["clients"]] == ["north", "south"]
    assert result.split["label_names"] == TAGS
    done = call("predict", result.path, tmp_path / "north.conll", "--client", "north", "--format", "jsonl")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[0])["words"] == rows_of(30)[0]["tokens"]


# -- predictions, evaluation, exports


@pytest.fixture(scope="module")
def trained(tiny_encoder, sentences, tmp_path_factory):
    """A run by flags alone."""
    folder = tmp_path_factory.mktemp("flags")
    sets = {
        "training.epochs": 15, "training.device": "cpu", "training.batch_size": 4, "model.max_length": 32,
        "adapter.target_modules": '"all-linear"',
    }  # fmt: skip
    done = call(
        "run", "--task", "token-classification", "--data", sentences, "--text", "tokens", "--label", "ner",
        "--split", "column", "--column", "site", "--model", tiny_encoder, "--method", "local", "--rounds", 3,
        "--rank", 8, "--learning-rate", 0.01, "--runs", folder, "--name", "ner",
        *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder / "ner"


def test_tags_are_predicted_from_flags_lines_and_tables(trained, sentences):
    asked = ["predict", trained, "--client", "north"]
    one = call(*asked, "--text", "word001 invoice refund word002")
    assert one.exit_code == 0, one.output
    [row] = csv.DictReader(io.StringIO(one.stdout))
    assert row == {"row": "1", "words": "word001 invoice refund word002", "tags": "O B-BILL I-BILL O"}
    lines = call(*asked, "--format", "jsonl", stdin="word001 parcel\ninvoice\n")
    assert [json.loads(line)["tags"] for line in lines.stdout.splitlines()] == [["O", "B-POST"], ["B-BILL"]]
    table = call(*asked, sentences, "--format", "jsonl")
    assert table.exit_code == 0, table.output
    found = [json.loads(line) for line in table.stdout.splitlines()]
    assert len(found) == 60 and all(len(row["words"]) == len(row["tags"]) for row in found)
    shown = call(*asked, "--text", "word001 invoice", "--format", "table").stdout
    assert "invoice/B-BILL" in shown and "word001/" not in shown


def test_scores_of_words_and_of_whole_entities(trained, sentences):
    done = call("evaluate", trained, sentences, "--client", "all", "--format", "json")
    assert done.exit_code == 0, done.output
    for one in json.loads(done.stdout)["clients"]:
        assert one["examples"] == 60 and one["words"] == sum(len(row["tokens"]) for row in rows_of())
        assert 0.8 < one["accuracy"] <= 1 and 0.5 < one["f1_entities"] <= 1
        assert [kind["label"] for kind in one["entities"]] == ["BILL", "POST"]
        right = sum(kind["recall"] * kind["examples"] for kind in one["entities"])
        assert right / 60 == pytest.approx(sum(kind["recall"] for kind in one["entities"]) / 2)
    table = call("evaluate", trained, sentences, "--client", "north").stdout
    assert "entity F1" in table and "BILL" in table
    lines = call("evaluate", trained, sentences, "--client", "north", "--format", "csv").stdout
    assert lines.splitlines()[0] == "client,examples,words,accuracy,loss,f1_entities"


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_an_export_tags_as_its_client_does_with_and_without_this_package(trained, tmp_path, form, run_card):
    words = ["word001", "invoice", "re-fund", "parcel", "word002"]
    own = load_tagger(trained / "clients" / "north").tag([words])[0]
    folder = export_client(trained, "north", form, tmp_path / "north")
    assert load_tagger(folder).tag([words]) == [own]
    assert run_card(folder, f"tag({words!r})") == str(own)
    if form == "merged":
        model = AutoModelForTokenClassification.from_pretrained(folder)
        assert model.config.id2label == dict(enumerate(TAGS))


def test_cores_export_and_so_does_an_adapter_without_head(tiny_encoder, sentences, tmp_path, run_card):
    result = run(make_config(values(tiny_encoder, sentences, method="ce-lora", rounds=1)), tmp_path / "run")
    own = result.tagger("south").tag([["invoice", "word001"]])[0]
    assert run_card(export_client(result.path, "south", "tri-matrix"), 'tag(["invoice", "word001"])') == str(own)
    folder = export_client(result.path, "south", "lora-no-head")
    assert "torch.Size([1, 4, 32])" in run_card(folder, 'embed(["invoice", "word001"]).shape')


def test_the_right_loader_is_named(trained, finished):
    with pytest.raises(RunError, match=r"tags words.*trifed\.load_tagger"):
        trifed.load_client(trained / "clients" / "north")
    with pytest.raises(RunError, match=r"classifier.*trifed\.load_client"):
        load_tagger(finished("local").path / "clients" / "amber")


# -- inputs that go wrong, or look as if they did

GOOD = {"tokens": ["invoice", "word001"], "ner": ["B-BILL", "O"], "site": "north"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": [], "ner": []}, "column 'tokens' has no words"),
        ({"tokens": ""}, "column 'tokens' has no words"),
        ({"tokens": None}, "column 'tokens' holds a NoneType"),
        ({"tokens": 7}, "column 'tokens' holds a int"),
        ({"tokens": ["invoice", " "]}, "word 2 in column 'tokens' is ' '"),
        ({"tokens": ["invoice", 5]}, "word 2 in column 'tokens' is 5"),
        ({"tokens": ["invoice", "\ud800"]}, "word 2 in column 'tokens' is"),
        ({"tokens": "['invoice', 'word001']"}, "column 'tokens' holds a str"),
        ({"ner": ["B-BILL"]}, "got 1 tags for 2 words"),
        ({"ner": "B-BILL O O"}, "got 3 tags for 2 words"),
        ({"ner": ["B-BILL", None]}, "tag 2 in column 'ner' is None"),
        ({"ner": {"a": 1}}, "column 'ner' holds a dict"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(row, said, tiny_encoder, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in (GOOD, {**GOOD, **row})), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        run(make_config(values(tiny_encoder, path)), tmp_path / "run")
    assert str(refused.value).startswith(f"{path}, line 2: ") and said in str(refused.value)


def test_a_missing_column_is_named(tiny_encoder, sentences, tmp_path):
    given = values(tiny_encoder, sentences)
    for setting in ("text", "label"):
        wrong = {**given, "data": {**given["data"], setting: "tags"}}
        with pytest.raises(DataError, match=rf"no column 'tags'.*Set data\.{setting}"):
            run(make_config(wrong), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.label: got ''"):
        make_config({**given, "data": {**given["data"], "label": ""}})


def test_tags_that_are_not_among_those_named_or_trained(tiny_encoder, sentences, trained, tmp_path):
    given = values(tiny_encoder, sentences)
    few = {**given, "data": {**given["data"], "labels": ["O", "B-BILL", "I-BILL"]}}
    with pytest.raises(DataError, match=r"data\.labels: got other tags, B-POST, I-POST; expected some of O"):
        run(make_config(few), tmp_path / "run")
    twice = {**given, "data": {**given["data"], "labels": [*TAGS, "O"]}}
    with pytest.raises(DataError, match="got one tag twice"):
        run(make_config(twice), tmp_path / "run")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({**GOOD, "tokens": ["word001"], "ner": ["B-SHOP"]}), encoding="utf-8")
    test = {**given, "data": {**given["data"], "test": str(other)}}
    with pytest.raises(DataError, match=r"data\.test: got other tags, B-SHOP"):
        run(make_config(test), tmp_path / "run")
    done = call("evaluate", trained, other, "--client", "north")
    assert isinstance(done.exception, TrifedError) and "B-SHOP" in str(done.exception)


def test_a_separate_test_set_is_scored(tiny_encoder, sentences, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, rows_of(12, seed=9))), encoding="utf-8")
    given = values(tiny_encoder, sentences, method="local", rounds=1)
    result = run(make_config({**given, "data": {**given["data"], "test": str(other)}}), tmp_path / "run")
    assert 0 < result.summary["global_test"]["mean"] <= 1 and result.summary["global_test"]["examples"] == 12


def test_unusual_words_one_client_and_words_without_tokens(tiny_encoder, tmp_path):
    words = ["\U0001f600", "مرحبا", "\u200b", "x" * 3000, "New York", "[SEP]", "'\"\\", "漢字", "[", "]"]
    rows = [{"tokens": words[n:] + words[:n], "ner": ["O", "B-X"] * 5} for n in range(10)] * 3
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = values(tiny_encoder, path, method="local", rounds=1)
    given["data"]["clients"] = {"split": "iid", "count": 1, "min_examples": 5}
    given["training"] |= {"batch_size": 1, "epochs": 1}
    result = run(make_config({**given, "data": {**given["data"], "drop_duplicates": False}}), tmp_path / "run")
    [client] = result.summary["clients"]
    assert np.isfinite(client["now"]["loss"])
    [found] = result.tagger("client-00").tag([words])
    assert len(found) == len(words) and set(found) <= {"O", "B-X"}
    assert len(result.tagger("client-00").tag(["a b  c"])[0]) == 3
    with pytest.raises(DataError, match="as a sentence"):
        result.tagger("client-00").tag([[]])


def test_what_has_no_meaning_for_tags_is_left_out_or_refused(tiny_encoder, sentences, tmp_path):
    given = values(tiny_encoder, sentences)
    with pytest.raises(ConfigError, match=r"metrics: got auroc.*no label for each example"):
        make_config({**given, "metrics": ["auroc"]})
    with pytest.raises(ConfigError, match=r"metrics: got f1_entities.*no tags of words"):
        make_config({"data": {"source": "t.csv"}, "metrics": ["f1_entities"]})
    parts = {"method": "fedavg-lora", "personalization": {"label_prior": True, "calibrate": True}}
    left_out = [text.split(":")[0] for text in make_config({**given, **parts}).parts_left_out()]
    assert left_out == ["personalization.label_prior", "personalization.calibrate"]
    split = {**given, "data": {**given["data"], "clients": {"split": "pathological", "count": 2}}}
    with pytest.raises(DataError, match=r"labels_per_client = 2, but the table has 1 label;"):
        run(make_config(split), tmp_path / "run")
    nouns = tmp_path / "nouns.jsonl"
    rows = [{**row, "ner": ["NOUN" if tag != "O" else "VERB" for tag in row["ner"]]} for row in rows_of()]
    nouns.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match=r"f1_entities needs tags of entities.*NOUN, VERB"):
        run(make_config(values(tiny_encoder, nouns)), tmp_path / "run")
    plain = run(make_config(values(tiny_encoder, nouns, metrics=[], method="local", rounds=1)), tmp_path / "run")
    assert plain.summary["metrics"] == {}
    assert set(plain.tagger("north").tag(["invoice word001"])[0]) <= {"NOUN", "VERB"}


def test_models_that_cannot_tag_are_refused(tiny_language, tiny_encoder):
    with pytest.raises(ModelError, match=r"needs an encoder.*it fits task = .*'causal-lm'"):
        TASK.load(str(tiny_language()))
    base = TASK.load(str(tiny_encoder))
    with pytest.raises(ModelError, match=r"max_length: got 200 with a text of 102 tokens, expected at most 64"):
        TASK.encode(base, examples([["word001"] * 100]), ModelSettings(max_length=200))


def test_dirichlet_with_noise_on_every_step(tiny_encoder, sentences, tmp_path):
    given = values(tiny_encoder, sentences, method="fedavg-lora", rounds=1)
    given["data"]["clients"] = {"split": "iid", "count": 2}
    given["training"] = {"batch_size": 8, "steps": 2, "precision": "fp32", "device": "cpu"}
    given["privacy"] = {"training": {"epsilon": 8.0}}
    assert run(make_config(given), tmp_path / "run").summary["finished"]
