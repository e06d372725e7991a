"""The model card of an exported folder: origin, measured accuracy, code that loads the model, and limits.

The card and its code are templates in `templates/`. The code works without trifed and runs from inside the folder.
It defines `classify(texts, pairs=None)` or `classify(images)`, which return probabilities, `estimate(texts)` for
numbers; without a head `embed`, which returns pooled features; for other tasks `answer` or `match`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from trifed.common.text import markdown_code, markdown_text
from trifed.common.version import __version__
from trifed.config.roles import ACCURACY
from trifed.config.settings import TaskName
from trifed.export.locate import FinishedRun, join_names
from trifed.methods import METHODS
from trifed.tasks import TASKS
from trifed.tasks.prompts import CHAT, WITHOUT

Form = Literal["tri-matrix", "lora", "lora-no-head", "merged"]

MEANINGS: dict[Form, str] = {
    "tri-matrix": "an adapter W0 + s·B·C·A on the base model, as it was trained",
    "lora": "a plain PEFT LoRA adapter on the base model, with the head in a file of its own",
    "lora-no-head": "a plain PEFT LoRA adapter on the base model, without the head, as adapter servers expect it",
    "merged": "full weights; the base model is no longer needed",
}
PIPELINES: dict[TaskName, str] = {
    "multi-label-classification": "text-classification",
    "text-regression": "text-classification",
    "image-text": "zero-shot-image-classification",
    "image-text-pairs": "zero-shot-image-classification",
    "causal-lm": "text-generation",
    "sequence-to-sequence": "text2text-generation",
}
"""Names of tasks on model hubs, where they differ from those of trifed."""

RESULTS = {"label": ".softmax(-1)", "labels": ".sigmoid()", "number": "[:, 0]"}
"""Python code that makes results of logits, by `Task.output`."""

ENVIRONMENT = Environment(
    loader=PackageLoader("trifed.export"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
)
ENVIRONMENT.filters |= {"repr": repr, "cell": markdown_text, "span": markdown_code}


def model_card(run: FinishedRun, form: Form, facts: dict[str, Any], source: str, stock: str | None) -> str:
    """Return the text of README.md: Markdown with the header that model hubs read.

    Args:
        run: The client's run.
        form: The form of the folder's content.
        facts: The content of its classifier.json.
        source: Folder or hub name of the base model.
        stock: Name of the transformers class that loads the folder with its head; None if there is none.
    """
    task, name, packages = TASKS[run.config.task], run.config.model.name, run.environment["packages"]
    stock = stock if task.has_head else None
    template = facts.get("template") or WITHOUT
    return ENVIRONMENT.get_template("card.md.jinja").render(
        run=run,
        client=next(client for client in run.summary["clients"] if client["name"] == facts["client"]),
        meaning=MEANINGS[form] if task.has_head else MEANINGS[form].partition(", with the head")[0],
        pipeline=PIPELINES.get(task.name, task.name),
        base_name=Path(name).name if Path(name).exists() else name,
        hub_name=name if name.count("/") == 1 and not Path(name).exists() else None,  # no path of this machine
        citation=METHODS[run.config.method.name].citation,
        labels=join_names(facts["labels"]),
        packages=", ".join(
            f"{package} {packages[package]}" for package in ("trifed", "torch", "transformers", "peft")
        ),
        noise=run.config.privacy.training,
        version=__version__,
        code=f"{'native_' if stock else ''}{task.code}.py.jinja",
        task=task,
        metric=ACCURACY[task.name],
        facts=facts,
        base=None if form == "merged" else source,
        tri_matrix=form == "tri-matrix",
        head=form != "lora-no-head",
        images=facts["columns"]["image"] is not None,
        stock=stock,
        template=template,
        chat=template == CHAT,
        function={"label": "classify", "labels": "classify", "number": "estimate"}.get(task.output, ""),
        result=RESULTS.get(task.output, ""),
        mean=facts.get("target_mean") or 0.0,
        scale=facts.get("target_scale") or 1.0,
        auto_class=task.native_class and task.native_class.__name__,
    )
