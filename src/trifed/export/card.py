"""The model card of an exported folder: origin, measured accuracy, code that loads the model, and limits.

The card and its code are templates in `templates/`. The code works without trifed and runs from inside the folder.
It defines `classify(texts, pairs=None)` or `classify(images)`, which return probabilities; without a head `embed`,
which returns pooled features; for other tasks `answer` or `match`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from trifed.common.version import __version__
from trifed.config.settings import TaskName
from trifed.export.locate import FinishedRun, join_names
from trifed.methods import METHODS
from trifed.tasks import TASKS, Task
from trifed.tasks.prompts import CHAT, WITHOUT

Form = Literal["tri-matrix", "lora", "lora-no-head", "merged"]

MEANINGS: dict[Form, str] = {
    "tri-matrix": "an adapter W0 + s·B·C·A on the base model, as it was trained",
    "lora": "a plain PEFT LoRA adapter on the base model, with the head in a file of its own",
    "lora-no-head": "a plain PEFT LoRA adapter on the base model, without the head, as adapter servers expect it",
    "merged": "full weights; the base model is no longer needed",
}
PIPELINES: dict[TaskName, str] = {
    "image-text": "zero-shot-image-classification",
    "image-text-pairs": "zero-shot-image-classification",
    "causal-lm": "text-generation",
}
"""Names of tasks on model hubs, where they differ from those of trifed."""
PACKAGES = ("trifed", "torch", "transformers", "peft")


@dataclass(frozen=True)
class ExportedModel:
    """What the card of an exported folder describes.

    Attributes:
        client: Name of the client.
        form: What the folder holds.
        facts: The content of its classifier.json.
        source: Folder or hub name of the base model.
        stock: Name of the transformers class that loads the folder with its head; None if there is none.
    """

    client: str
    form: Form
    facts: dict[str, Any]
    source: str
    stock: str | None = None


def model_card(run: FinishedRun, model: ExportedModel) -> str:
    """Return the text of README.md: Markdown with the header that model hubs read."""
    task, name = TASKS[run.config.task], run.config.model.name
    packages = run.environment["packages"]
    return _environment().get_template("card.md.jinja").render(
        **_code(task, model),
        run=run,
        model=model,
        client=next(client for client in run.summary["clients"] if client["name"] == model.client),
        meaning=MEANINGS[model.form] if task.labelled else MEANINGS[model.form].partition(", with the head")[0],
        pipeline=PIPELINES.get(task.name, task.name),
        hub_name=name if name.count("/") == 1 and not Path(name).exists() else None,  # no path of this machine
        citation=METHODS[run.config.method.name].citation,
        labels=join_names(model.facts["labels"]),
        packages=", ".join(f"{package} {packages[package]}" for package in PACKAGES),
        noise=run.config.privacy.training,
        version=__version__,
    )  # fmt: skip


def _code(task: Task, model: ExportedModel) -> dict[str, Any]:
    """Return the name of the code's template, as `code`, and the values that it needs."""
    facts, snippet = model.facts, task.snippet
    template = facts.get("template") or WITHOUT
    values: dict[str, Any] = {
        "task": task,
        "facts": facts,
        "base": None if model.form == "merged" else model.source,
        "tri_matrix": model.form == "tri-matrix",
        "head": model.form != "lora-no-head",
        "images": facts["columns"]["image"] is not None,
        "stock": model.stock if task.output == "label" else None,
        "snippet": snippet,
        "template": template,
        "chat": template == CHAT,
    }
    if task.output == "answer":
        return {**values, "code": "language_model.py.jinja"}
    if task.output == "match" or snippet is None:
        return {**values, "code": "image_text.py.jinja"}
    return {
        **values,
        "code": "native_classifier.py.jinja" if model.stock else "classifier.py.jinja",
        "auto_class": task.native_class and task.native_class.__name__,
        "batch": snippet.batch.replace("{length}", str(facts["max_length"])),
        "example": snippet.pair_example if facts["columns"]["pair"] is not None else snippet.example,
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trifed.export"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"repr": repr, "cell": lambda text: " ".join(text.split()).replace("|", "&#124;")}
    return environment
