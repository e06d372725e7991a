"""Causal language models: which tokens are learned, what is cut, and whole runs."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import trifed
from trifed import make_config, run
from trifed.adapters.settings import AdapterSettings
from trifed.common.errors import ConfigError, DataError, ModelError, RunError
from trifed.config.run import to_toml
from trifed.config.settings import ModelSettings, TrainingSettings
from trifed.data import LANGUAGE, DataSettings, Examples, read_table
from trifed.federation.training.batches import RoundRandom
from trifed.federation.training.evaluation import evaluate
from trifed.federation.training.local_training import LocalTraining, train_locally
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks import TASKS

TASK = TASKS["causal-lm"]
FP32 = TrainingSettings(precision="fp32", device="cpu", eval_batch_size=2)
CPU = torch.device("cpu")


def bench_of(folder, method="local", targets="auto", **model):
    adapter = AdapterSettings(rank=4, alpha=8, target_modules=targets)
    settings = (ModelSettings(name=str(folder), max_length=64, **model), adapter, FP32)
    return build_shared_model(TASK.load(str(folder)), METHODS[method], 1, 0, settings, TASK)


def examples(**inputs):
    count = len(next(iter(inputs.values())))
    return Examples(inputs, np.zeros(count, np.int64))


def read(shared_model, data):
    """Each example as (what is read only, what is learned), joined stretches of text."""
    decode = shared_model.base.processor.decode
    return [
        tuple(
            decode([t for t, is_learned in zip(ids, learned, strict=True) if is_learned == part])
            for part in (0, 1)
        )
        for ids, learned in zip(data.ids, data.more["learned"], strict=True)
    ]


def test_of_a_prompt_and_its_answer_the_answer_and_its_end_are_learned(tiny_language):
    shared_model = bench_of(tiny_language(), template="Q {prompt} {input}\nA ")
    data = shared_model.encode(examples(prompt=["one?", "two?"], input=["", "here"], answer=["yes", "no"]))
    assert read(shared_model, data) == [("<s>Q one? \nA ", "yes</s>"), ("<s>Q two? here\nA ", "no</s>")]


def test_without_a_template_instructions_stand_in_the_usual_one(tiny_language):
    shared_model = bench_of(tiny_language())
    data = shared_model.encode(examples(prompt=["Go", "Go"], input=["", "far"], answer=["I go", "I go"]))
    assert [before for before, _ in read(shared_model, data)] == [
        "\n".join(["<s>### Instruction:", "Go", "", "### Response:", ""]),
        "\n".join(["<s>### Instruction:", "Go", "", "### Input:", "far", "", "### Response:", ""]),
    ]


def test_of_a_conversation_all_that_the_assistant_says_is_learned(tiny_language):
    shared_model = bench_of(tiny_language(chat=True))
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    talk = json.dumps([{"role": role, "content": content} for role, content in turns])
    assert read(shared_model, shared_model.encode(examples(messages=[talk]))) == [
        ("<user>a</s><assistant><user>c</s><assistant>", "b</s>d</s>")
    ]


def test_prompts_may_stand_in_the_chat_template(tiny_language):
    shared_model = bench_of(tiny_language(chat=True), template="chat")
    data = shared_model.encode(examples(prompt=["a"], input=["b"], answer=["c"]))
    assert read(shared_model, data) == [("<user>a\n\nb</s><assistant>", "c</s>")]


def test_without_a_chat_template_a_conversation_is_explained(tiny_language):
    talk = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    with pytest.raises(ModelError, match=r"chat template"):
        bench_of(tiny_language()).encode(examples(messages=[talk]))


def test_packed_texts_are_all_tokens_in_order(tiny_language):
    texts = ["a" * 50, "b" * 100, "c"]
    whole = bench_of(tiny_language(), packing=False).encode(examples(text=texts))
    packed = bench_of(tiny_language()).encode(examples(text=texts))
    # Each with <s> before and </s> behind: 52 + 102 + 3 = 157 tokens, 64 + 64 + 29.
    assert packed.lengths.tolist() == [64, 64, 29]
    assert whole.lengths.tolist() == [52, 64, 3]
    assert (whole.cut, packed.cut) == (1, 0)
    shared_model = bench_of(tiny_language())
    assert shared_model.base.processor.decode(list(chain(*packed.ids))) == "".join(
        f"<s>{text}</s>" for text in texts
    )


def test_packed_blocks_carry_the_label_of_their_first_token(tiny_language):
    data = Examples({"text": ["a" * 50, "b" * 100, "c"]}, np.array([0, 1, 2]))
    assert bench_of(tiny_language()).encode(data).labels.tolist() == [
        0,
        1,
        1,
    ]  # tokens 0, 64 and 128 of 52, 102, 3


def test_of_what_is_too_long_the_beginning_of_the_prompt_goes_first(tiny_language):
    shared_model = bench_of(tiny_language(), template="{prompt}:")
    data = shared_model.encode(examples(prompt=["p" * 80 + "q", "p"], answer=["yes", "y" * 90]))
    assert data.cut == 2
    # 64 tokens: <s>, then the last of the prompt, ":", and 4 of the answer; in the second case the answer is cut.
    assert read(shared_model, data) == [("<s>" + "p" * 57 + "q:", "yes</s>"), ("<s>", "y" * 63)]


@pytest.mark.parametrize("packing", [True, False])
def test_loss_and_accuracy_are_those_of_the_tokens_that_are_learned(tiny_language, packing):
    """In batches of two with padding, against one example at a time through the bare model."""
    shared_model = bench_of(tiny_language(), packing=packing, template="{prompt} ")
    data = shared_model.encode(examples(prompt=["abc", "d", "ef"], answer=["long answer", "x", "middling"]))
    total, count, shares = 0.0, 0, []
    for ids, learned in zip(data.ids, data.more["learned"], strict=True):
        with torch.no_grad():
            logits = shared_model.encoder(input_ids=torch.tensor([ids])).logits[0, :-1]
        wanted, keep = torch.tensor(ids[1:]), torch.tensor(learned[1:]).bool()
        total += cross_entropy(logits[keep], wanted[keep], reduction="sum").item()
        count += int(keep.sum())
        shares.append((logits.argmax(-1) == wanted)[keep].float().mean().item())
    scores = evaluate(shared_model.model, data, FP32)
    assert scores.loss == pytest.approx(total / count, rel=1e-5)
    assert scores.accuracy == pytest.approx(np.mean(shares), rel=1e-5)
    np.testing.assert_allclose(scores.right, shares, rtol=1e-5)
    assert scores.predictions.shape == (0,)


def test_features_are_means_over_the_tokens_whatever_the_padding(tiny_language):
    shared_model = bench_of(tiny_language())
    shared_model.model.eval()
    short = shared_model.encode(examples(prompt=["a"], answer=["b"]))
    both = shared_model.encode(examples(prompt=["a", "a" * 30], answer=["b", "b"]))
    with torch.no_grad():
        alone = shared_model.model.features(short.batch(np.array([0]), CPU))
        padded = shared_model.model.features(both.batch(np.arange(2), CPU))
    assert padded.shape == (2, 32)
    torch.testing.assert_close(padded[:1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gemma", "phi", "gpt2"])
@pytest.mark.parametrize("method", ["fedavg-lora", "ce-lora", "fed-xs"])
def test_every_architecture_learns_an_answer(tiny_language, kind, method):
    shared_model = bench_of(tiny_language(kind), method, targets="all-linear")
    batch = shared_model.encode(examples(prompt=["a", "b"], answer=["xyxy", "zzzz"])).batch(np.arange(2), CPU)
    before = shared_model.model.loss(batch).item()
    optimizer = torch.optim.AdamW(shared_model.parameters.values(), lr=0.03)
    for _ in range(60):
        shared_model.model.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert shared_model.model.loss(batch).item() < before - 0.2
    assert not any(name.startswith("head.") for name in shared_model.parameters)


@pytest.fixture
def instructions(tmp_path):
    """JSON Lines with two clients' prompts and answers, one learnable habit each."""
    path = tmp_path / "instructions.jsonl"
    rows = [
        {"ask": f"say {n}", "tell": word * 3, "site": site}
        for site, word in (("north", "ab"), ("south", "cd"))
        for n in range(24)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def values(folder, source, **more):
    return {
        "baselines": [], "task": "causal-lm",
        "rounds": 2,
        "model": {"name": str(folder), "max_length": 64},
        "adapter": {"rank": 4, "alpha": 8, "target_modules": "all-linear"},
        "data": {
            "source": str(source), "prompt": "ask", "answer": "tell",
            "clients": {"split": "column", "column": "site", "min_examples": 5},
        },
        "training": {"batch_size": 8, "learning_rate": 2e-2, "precision": "fp32", "device": "cpu", "epochs": 6},
        **more,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["own-prior", "ce-lora", "fedsa-lora", "local"])
def test_a_run_learns_and_its_clients_answer(tiny_language, instructions, tmp_path, method):
    config = make_config(values(tiny_language(), instructions, method=method))
    assert config.data.label == ""
    result = run(config, tmp_path / "run")
    assert result.split["label_names"] == ["all"]
    assert result.summary["controls"] == {}
    for client in result.summary["clients"]:
        assert client["now"]["loss"] < client["before"]["loss"]
    if method == "local":  # long enough for its habit
        for name, habit in (("north", "abab"), ("south", "cdcd")):
            answers = result.writer(name).answer(["say 3", "say 100"], tokens=6)
            assert [answer[:4] for answer in answers] == [habit, habit]
    kept = json.loads((result.path / "predictions.json").read_text())
    assert all(0 <= share <= 1 for shares in kept["right"].values() for share in shares)


def test_generated_answers_are_compared_with_the_right_ones_at_the_end(tiny_language, instructions, tmp_path):
    """By the prompts of the test data, of which the models know the habit of their site after this training."""
    metrics, heard = ["perplexity", "exact_match", "rouge_l"], []
    settings = values(tiny_language(), instructions, method="local", metrics=metrics, generated_answers=2)
    config = make_config({**settings, "metric": "perplexity", "keep": "best", "evaluate_every": 1})
    result = run(config, tmp_path / "run", heard.append)
    generating = [(event["client"], event["examples"]) for event in heard if event["event"] == "generating"]
    assert generating == [("north", 2), ("south", 2)]
    for client in result.summary["clients"]:
        now, word = client["now"], {"north": "ab", "south": "cd"}[client["name"]]
        assert now["perplexity"] == pytest.approx(np.exp(now["loss"]))
        [answer] = result.writer(client["name"]).answer(["say 3"], tokens=7)
        assert now["exact_match"] in (0, 0.5, 1) and now["exact_match"] == float(answer == 3 * word)
    assert set(result.summary["metrics"]) == set(metrics)
    curve = result.summary["curve"][1:]
    best = min(curve, key=lambda point: point["valid_metrics"]["perplexity"])
    assert result.summary["kept_round"]["round"] == best["round"]
    assert result.clients["rouge_l"].tolist() == result.clients["exact_match"].tolist()  # the answer is one word


@pytest.mark.parametrize("name", ["exact_match", "rouge_l"])
def test_metrics_of_answers_need_answers_and_cannot_decide(tiny_language, instructions, name):
    settings = values(tiny_language(), instructions)
    with pytest.raises(ConfigError, match=f"metric: .*{name}.*at the end"):
        make_config({**settings, "metric": name})
    settings["data"] = {"source": str(instructions), "text": "tell"}
    with pytest.raises(ConfigError, match=r"data\.answer"):
        make_config({**settings, "metrics": [name]})


def test_answers_do_not_depend_on_what_is_asked_beside_them(tiny_language, instructions, tmp_path):
    result = run(make_config(values(tiny_language(), instructions, method="local", rounds=1)), tmp_path / "run")
    writer = result.writer("north")
    prompts = ["say 1", "say something much longer than that", "x"]
    assert writer.answer(prompts, tokens=5) == [writer.answer([prompt], tokens=5)[0] for prompt in prompts]


def test_the_right_loader_is_named(tiny_language, instructions, tmp_path, finished):
    result = run(make_config(values(tiny_language(), instructions, method="local", rounds=1)), tmp_path / "run")
    with pytest.raises(RunError, match=r"language model.*trifed\.load_writer"):
        result.client("north")
    with pytest.raises(RunError, match=r"classifier.*trifed\.load_client"):
        trifed.load_writer(finished("local").path / "clients" / "amber")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"prompt": "ask"}, "prompt names a column and answer none"),
        ({"input": "ask"}, "input names a column, and prompt and answer name none"),
        ({"prompt": "ask", "answer": "tell", "messages": "talk"}, "messages and prompt both name a column"),
    ],
)
def test_half_a_question_is_refused(data, said):
    with pytest.raises(ConfigError, match=said):
        make_config({"task": "causal-lm", "data": {"source": "x.csv", **data}})


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        ("hello", "holds no JSON"),
        ([], "holds a list"),
        ([{"role": "user", "content": "a"}], "assistant"),
        ([{"role": "robot", "content": "a"}], "'robot', expected one of system, user, assistant"),
        ([{"from": "user", "value": "a"}], "expected a list of messages"),
    ],
)
def test_what_is_no_conversation_is_named_by_its_row(tmp_path, talk, said):
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps({"talk": t}) for t in (good, talk)), encoding="utf-8")
    settings = DataSettings(source=str(path), messages="talk", label="")
    with pytest.raises(DataError, match=rf"talks\.jsonl, line 2: .*{said}"):
        read_table(settings, LANGUAGE)


def test_a_model_of_another_kind_and_too_long_texts_are_refused(tiny_encoder, tiny_language):
    with pytest.raises(ModelError, match=r"next token.*task = 'text-class"):
        TASK.load(str(tiny_encoder))
    base = TASK.load(str(tiny_language()))
    with pytest.raises(ModelError, match=r"max_length: .*500.*128"):
        TASK.encode(base, examples(text=["a"]), ModelSettings(max_length=500))


def test_a_report_says_what_is_measured(tiny_language, instructions, tmp_path):
    """Perplexity is exp(loss) per client; the accuracy of a language model goes by its own name."""
    result = run(make_config(values(tiny_language(), instructions, method="local")), tmp_path / "run")
    losses = [client["now"]["loss"] for client in result.summary["clients"]]
    assert result.summary["perplexity"]["mean"] == pytest.approx(np.exp(losses).mean())
    assert result.summary["perplexity"]["worst"] == pytest.approx(np.exp(max(losses)))
    page = trifed.report(result.path, tmp_path / "report.md").read_text()
    assert "next-token accuracy" in page and "2 clients" in page
    assert f"perplexity {np.exp(losses).mean():.3g}" in page


def test_where_labels_are_learned_there_has_to_be_a_column_of_them():
    with pytest.raises(ConfigError) as refused:
        make_config({"data": {"source": "x.csv", "label": ""}})
    [problem] = refused.value.problems
    assert problem.startswith("data.label: ") and "'text-classification'" in problem


def test_a_column_of_labels_may_be_named_and_survives_the_file():
    config = make_config({"task": "causal-lm", "data": {"source": "x.csv", "label": "topic"}})
    assert make_config(tomllib.loads(to_toml(config))).data.label == "topic"
    plain = make_config({"task": "causal-lm", "data": {"source": "x.csv"}})
    assert make_config(tomllib.loads(to_toml(plain))) == plain and plain.data.label == ""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            {"template": "Answer:"},
            r"model\.template: got 'Answer:', expected a text with \{prompt\} in it",
        ),
        ({"class_prompt": "a photo"}, r"model\.class_prompt: got 'a photo', expected a sentence with \{\}"),
    ],
)
def test_a_text_without_the_place_it_is_for_is_refused(model, said):
    with pytest.raises(ConfigError, match=said):
        make_config({"data": {"source": "x.csv"}, "model": model})


def test_a_step_in_which_nothing_is_learned_counts_nothing(tiny_language):
    """An answer that was cut away: no prediction, a loss of 0 and no gradient."""
    shared_model = bench_of(tiny_language(), "fedavg-lora")
    data = shared_model.encode(examples(prompt=["a"], answer=["b"]))
    data = replace(data, more={"learned": [[0] * len(ids) for ids in data.ids]})
    job = LocalTraining(shared_model.parameters, data, RoundRandom.of(0, 1, 0), 0, 1, {})
    done = train_locally(shared_model.model, [job], FP32)[0]
    assert done.loss == 0
    assert not any(m.any() for name, m in done.moments.items() if name.startswith("exp_avg/"))
