"""The model card of an exported folder: where the model comes from, how to load it, what it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trifed.common.version import __version__
from trifed.config.settings import TaskName
from trifed.export.locate import FinishedRun, listed
from trifed.export.snippets import Asked, of_adapter, of_language_model, of_merged
from trifed.export.tower_snippet import of_captions, of_two_towers
from trifed.methods import METHODS
from trifed.tasks import TASKS

Form = Literal["tri-matrix", "lora", "lora-no-head", "merged"]

MEANINGS: dict[Form, str] = {
    "tri-matrix": "an adapter W0 + s·B·C·A on the base model, as it was trained",
    "lora": "a plain PEFT LoRA adapter on the base model, the head beside it",
    "lora-no-head": "a plain PEFT LoRA adapter on the base model and nothing else, as servers of adapters ask for",
    "merged": "full weights; the base model is no longer needed",
}
PIPELINES: dict[TaskName, str] = {
    "image-text": "zero-shot-image-classification",
    "image-text-pairs": "zero-shot-image-classification",
    "causal-lm": "text-generation",
}
"""Hubs' names, where they differ from ours."""
PACKAGES = ("trifed", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Exported:
    """What an exported folder is.

    `facts`: as in classifier.json; `source`: the base model's folder or hub name; `stock`: the class of
    transformers that loads the folder with its head.
    """

    client: str
    form: Form
    facts: dict[str, Any]
    source: str
    stock: str | None = None


def model_card(run: FinishedRun, exported: Exported) -> str:
    """README.md, Markdown with the header that model hubs read."""
    return "\n".join(
        [
            *_header(run, exported),
            f"# {exported.client}: {run.config.task.replace('-', ' ')}\n",
            f"The model of one client of a federated fine-tuning run: {_meaning(run, exported)}.\n",
            *_table(_rows(run, exported)),
            "\n## Use\n",
            *_use(exported),
            "\n## What it is not\n",
            *_limits(run, exported),
            "",
        ]
    )


def _meaning(run: FinishedRun, exported: Exported) -> str:
    whole = MEANINGS[exported.form]
    return whole if TASKS[run.config.task].labelled else whole.replace(", the head beside it", "")


def _header(run: FinishedRun, exported: Exported) -> Iterator[str]:
    yield "---"
    yield f"library_name: {'transformers' if exported.form == 'merged' else 'peft'}"
    yield f"pipeline_tag: {PIPELINES.get(run.config.task, run.config.task)}"
    name = run.config.model.name
    if name.count("/") == 1 and not Path(name).exists():  # a hub name; a local path would mean nothing there
        yield f"base_model: {name}"
    yield "tags: [trifed, federated-learning]"
    yield "---"


def _rows(run: FinishedRun, exported: Exported) -> Iterator[tuple[str, str]]:
    client = next(c for c in run.summary["clients"] if c["name"] == exported.client)
    sent, packages = run.summary["bytes"], run.environment["packages"]
    yield (
        "base model",
        f"`{run.config.model.name}`, SHA-256 of its weights `{run.environment['base_fingerprint']}`",
    )
    yield "method", f"`{run.config.method.name}`: {METHODS[run.config.method.name].citation}"
    if TASKS[run.config.task].labelled:
        yield "labels", listed(exported.facts["labels"])
    yield "rounds", f"{run.summary['rounds']}, this client trained in {client['rounds']}"
    yield "clients", str(len(run.names))
    metric = TASKS[run.config.task].metric
    yield f"test {metric} before", _accuracy(client["before"])
    yield f"test {metric} now", _accuracy(client["now"])
    yield "bytes, this client", f"{client['bytes_up']:,} up, {client['bytes_down']:,} down"
    yield "bytes, whole run", f"{sent['up']:,} up, {sent['down']:,} down"
    yield "run", f"`{run.summary['name']}`, identity `{run.environment['run_id']}`, seed {run.summary['seed']}"
    yield "trained with", ", ".join(f"{name} {packages[name]}" for name in PACKAGES)
    yield "exported with", f"trifed {__version__}"


def _table(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    yield "| | |\n|---|---|"
    for name, value in rows:
        yield f"| {name} | {' '.join(value.split()).replace('|', '&#124;')} |"


def _accuracy(scores: dict[str, Any] | None) -> str:
    if not scores or scores["accuracy"] is None:
        return "not measured, the client has no test examples"
    return f"{100 * scores['accuracy']:.1f} % of {scores['examples']} held-out examples of this client"


def _use(exported: Exported) -> Iterator[str]:
    facts, form = exported.facts, exported.form
    task = TASKS[facts["task"]]
    if task.output == "answer":
        yield from _ask(exported)
        return
    if task.output == "match":
        yield from _match(exported)
        return
    asked = Asked(task, facts["pooling"], facts["max_length"], facts["columns"]["pair"] is not None)
    head = form != "lora-no-head"
    if task.snippet is None:
        base = None if form == "merged" else exported.source
        yield f"With plain {'' if base is None else 'PEFT and '}transformers, from inside this folder:"
        snippet = of_two_towers(
            base, facts["labels"], facts["class_prompt"], folded=form == "tri-matrix", head=head
        )
    elif form == "merged":
        snippet = of_merged(asked, stock=exported.stock is not None)
        stock = f" (`{exported.stock}`)" if exported.stock else ""
        yield f"With plain transformers, from inside this folder{stock}:"
    else:
        snippet = of_adapter(exported.source, asked, folded=form == "tri-matrix", head=head)
        yield "With plain PEFT and transformers, from inside this folder; `BASE` is where the base model lies:"
    yield f"\n```python\n{snippet}```\n"
    if not head and task.snippet is None:
        yield "The client's bias for each class is not here, so its own label shares do not count."
    elif not head:
        yield "There is no head here, so these are features, not labels."
    else:
        one, many = ("--image FILE", "images") if facts["columns"]["image"] else ('--text "..."', "texts")
        yield f"With trifed: `trifed predict FOLDER {one}`, or `trifed.load_client(folder).predict({many})`."


def _ask(exported: Exported) -> Iterator[str]:
    """The same of a language model."""
    base = None if exported.form == "merged" else exported.source
    if base is None:
        yield "With plain transformers, from inside this folder:"
    else:
        yield "With plain PEFT and transformers, from inside this folder; `BASE` is where the base model lies:"
    facts = exported.facts
    images = facts["columns"]["image"] is not None
    snippet = of_language_model(base, facts.get("template"), folded=exported.form == "tri-matrix", images=images)
    yield f"\n```python\n{snippet}```\n"
    flags, more = ("--image FILE ", ", images=files") if images else ("", "")
    yield (
        f'With trifed: `trifed predict FOLDER {flags}--text "..."`, or '
        f"`trifed.load_writer(folder).answer(prompts{more})`."
    )


def _match(exported: Exported) -> Iterator[str]:
    """The same of a model of images and captions."""
    base = None if exported.form == "merged" else exported.source
    yield f"With plain {'' if base is None else 'PEFT and '}transformers, from inside this folder:"
    snippet = of_captions(base, exported.facts["max_length"], folded=exported.form == "tri-matrix")
    yield f"\n```python\n{snippet}```\n"
    yield (
        'With trifed: `trifed predict FOLDER --image FILE --text "..." --text "..."`, or '
        "`trifed.load_matcher(folder).among(texts).predict(images)`."
    )


def _privacy(run: FinishedRun) -> str:
    """What the model may give away: noise on updates or summaries protects what was sent, not a client's model."""
    noised = run.config.privacy.training
    if noised is None:
        return (
            "- **It gives no privacy guarantee.** It was trained on a client's own examples, without differential "
            "privacy, and may have kept parts of them. Whoever holds this folder can try to find out what they "
            "were."
        )
    return (
        f"- **Its privacy guarantee has limits.** It was trained by DP-SGD, ε = {noised.epsilon:g} and "
        f"δ = {noised.delta:g} over the whole run, one training example added or removed. Validation examples, by "
        "which a method may scale its head, are outside of that. The run was simulated, with noise from its seed: "
        "whoever has the run's folder can take the noise off, and a number of runs costs the sum."
    )


def _limits(run: FinishedRun, exported: Exported) -> Iterator[str]:
    yield _privacy(run)
    yield (
        "- Its accuracy was measured on held-out examples of this client alone; elsewhere it may be better or "
        "worse. One seed was measured."
    )
    gives = TASKS[run.config.task].output
    if gives == "answer":
        yield "- It writes what is likely, not what is true."
    elif gives == "match":
        yield "- It always finds some text nearest, also where none of those that it is given fits."
    elif exported.form != "lora-no-head":
        yield "- It knows the labels above and always answers with one of them, whatever it is asked about."
    if exported.form != "merged":
        yield "- It works on the base model of this fingerprint only; other weights make it wrong, and silently."
    yield "- The terms of the base model, and of the data, hold for it as well."
