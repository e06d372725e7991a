"""The class, predictions and scores that belong to the models of one kind, by the columns that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trifed.export.locate import Columns
    from trifed.federation.client_model import ClientModel

# Functions import what needs torch, so that --help need not wait for it.


def prediction(columns: Columns, top: int, tokens: int) -> Callable[..., Iterable[Any]]:
    """Return the function that predicts with a model of this kind."""
    from trifed.export import predict

    if columns.answers:
        return partial(predict.answer, tokens=tokens)
    if columns.target == "number":
        return predict.predict_numbers
    if columns.target == "labels":
        return partial(predict.predict_labels, separator=columns.label_separator or ";")
    return predict.tag if columns.tags else partial(predict.predict, top=top)


def kind(columns: Columns) -> type[ClientModel]:
    """Return the class of the models that read the given columns."""
    from trifed.federation.client_model import Classifier, RetrievalModel, Writer
    from trifed.federation.tagger import Tagger
    from trifed.federation.target_models import MultiLabelClassifier, Regressor

    if columns.answers or columns.tags:
        return Writer if columns.answers else Tagger
    kinds: dict[str, type[ClientModel]] = {"labels": MultiLabelClassifier, "number": Regressor}
    return kinds.get(columns.target, RetrievalModel if columns.matches else Classifier)


def evaluation(columns: Columns, tokens: int) -> Callable[..., Any]:
    """Return the function that evaluates a model of this kind."""
    from trifed.export import evaluate, evaluate_targets

    if columns.target != "class":
        labels = columns.target == "labels"
        return evaluate_targets.evaluate_multi_label if labels else evaluate_targets.evaluate_regressor
    if columns.answers:
        return partial(evaluate.evaluate_writer, tokens=tokens)
    if columns.tags:
        from trifed.export.evaluate_tags import evaluate_tagger

        return evaluate_tagger
    return evaluate.evaluate_retrieval_model if columns.matches else evaluate.evaluate_client
