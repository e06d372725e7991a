"""Predictions and answers of a client's model for new inputs, and how they are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TextIO

import numpy as np

from trifed.common.text import csv_row
from trifed.config.settings import TrainingSettings
from trifed.export.inference_inputs import InferenceInput, by_role, chunks
from trifed.export.locate import LocatedModel
from trifed.federation.client_model import Classifier, Kind, Writer, load_model
from trifed.federation.tagger import Tagger
from trifed.federation.target_models import MultiLabelClassifier, Regressor
from trifed.federation.training.device_placement import choose_device

CHUNK = 256
"""Texts or images that are predicted together; within a chunk, batches hold inputs of similar length."""
PROMPTS_PER_CHUNK = 16
"""Prompts that are answered together."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one text or image. `best`: labels with probabilities, the most probable first."""

    input: InferenceInput
    best: list[tuple[str, float]]

    def csv_row(self) -> dict[str, object]:
        """Return `row,text[,pair],label,probability[,label_2,probability_2,…]`."""
        cells = _cells(self.input)
        for number, (label, probability) in enumerate(self.best, start=1):
            suffix = "" if number == 1 else f"_{number}"
            cells |= {f"label{suffix}": label, f"probability{suffix}": f"{probability:.6f}"}
        return cells

    def json_object(self) -> dict[str, object]:
        """Return row, text, perhaps pair, label and probability; and `top` if there are several labels."""
        top = [{"label": label, "probability": round(value, 6)} for label, value in self.best]
        return {**_cells(self.input), **top[0], **({"top": top} if len(top) > 1 else {})}


def _cells(item: InferenceInput) -> dict[str, object]:
    return {
        "row": item.row,
        "text" if item.image is None else "image": item.text,
        **({} if item.pair is None else {"pair": item.pair}),
    }


@dataclass(frozen=True)
class LabelsPrediction:
    """All labels of one text, with probabilities. `separator`: what separates them in CSV."""

    input: InferenceInput
    chosen: list[tuple[str, float]]
    separator: str

    def csv_row(self) -> dict[str, object]:
        """Return `row,text[,pair],labels,probabilities`, both empty if no label is chosen."""
        labels = self.separator.join(label for label, _ in self.chosen)
        probabilities = self.separator.join(f"{value:.6f}" for _, value in self.chosen)
        return {**_cells(self.input), "labels": labels, "probabilities": probabilities}

    def json_object(self) -> dict[str, object]:
        """Return row, text, perhaps pair, the list of labels, and their probabilities."""
        labels, values = [label for label, _ in self.chosen], [round(value, 6) for _, value in self.chosen]
        return {**_cells(self.input), "labels": labels, "probabilities": values}


@dataclass(frozen=True)
class NumberPrediction:
    """The number that is estimated for one text."""

    input: InferenceInput
    number: float

    def csv_row(self) -> dict[str, object]:
        """Return `row,text[,pair],number`."""
        return {**_cells(self.input), "number": f"{self.number:.6g}"}

    def json_object(self) -> dict[str, object]:
        """Return row, text, perhaps pair, and the number."""
        return {**_cells(self.input), "number": self.number}


@dataclass(frozen=True)
class Answer:
    """The answer of a model to one prompt."""

    input: InferenceInput
    text: str

    def csv_row(self) -> dict[str, object]:
        """Return `row,prompt,input,answer`."""
        return {
            "row": self.input.row,
            "prompt": self.input.text,
            "input": self.input.pair or "",
            "answer": self.text,
        }

    def json_object(self) -> dict[str, object]:
        """Return row, prompt, perhaps input, and answer."""
        return {name: value for name, value in self.csv_row().items() if name != "input" or value}


@dataclass(frozen=True)
class Tagging:
    """The words of one sentence, and their tags. `row`: 1-based row or line in its source."""

    row: int
    words: list[str]
    tags: list[str]

    def csv_row(self) -> dict[str, object]:
        """Return `row,words,tags`: with spaces between them, or as JSON lists if a word has spaces itself."""
        spaced = " ".join(self.words).split() == self.words and not self.words[0].startswith("[")
        write: Callable[[list[str]], str] = " ".join if spaced else partial(json.dumps, ensure_ascii=False)
        return {"row": self.row, "words": write(self.words), "tags": write(self.tags)}

    def json_object(self) -> dict[str, object]:
        """Return row, words and tags."""
        return {"row": self.row, "words": self.words, "tags": self.tags}


Result = Prediction | LabelsPrediction | NumberPrediction | Answer | Tagging
"""A result for one input; `csv_row` has the same columns for all results of a model."""


def load_located(kind: type[Kind], located: LocatedModel, base: str | None = None) -> Kind:
    """Load a located model, onto CUDA if there is any; see `load_model` for the errors."""
    model = load_model(kind, located.folder, base)
    model.model.to(choose_device(TrainingSettings()))
    return model


def predict(classifier: Classifier, inputs: Iterable[InferenceInput], top: int = 1) -> Iterator[Prediction]:
    """Yield predictions in the order of the inputs, computed chunk by chunk. `top`: labels for each input."""
    for chunk in chunks(inputs, CHUNK):
        probabilities = classifier.probabilities_of(by_role(chunk))
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for item, row, labels in zip(chunk, probabilities, order, strict=True):
            yield Prediction(item, [(classifier.labels[label], float(row[label])) for label in labels])


def predict_labels(
    classifier: MultiLabelClassifier, inputs: Iterable[InferenceInput], separator: str = ";"
) -> Iterator[LabelsPrediction]:
    """Yield the labels with a probability over 0.5 in the order of the inputs, computed chunk by chunk."""
    for chunk in chunks(inputs, CHUNK):
        for item, row in zip(chunk, classifier.probabilities_of(by_role(chunk)), strict=True):
            yield LabelsPrediction(item, classifier.chosen(row), separator)


def predict_numbers(regressor: Regressor, inputs: Iterable[InferenceInput]) -> Iterator[NumberPrediction]:
    """Yield numbers in the order of the inputs, computed chunk by chunk."""
    for chunk in chunks(inputs, CHUNK):
        yield from map(NumberPrediction, chunk, map(float, regressor.predict_of(by_role(chunk))))


def answer(writer: Writer, inputs: Iterable[InferenceInput], tokens: int) -> Iterator[Answer]:
    """Yield answers of at most `tokens` tokens in the order of the prompts, computed chunk by chunk."""
    for chunk in chunks(inputs, PROMPTS_PER_CHUNK):
        yield from map(Answer, chunk, writer.answer_all(by_role(chunk, prompts=True), tokens))


def tag(tagger: Tagger, inputs: Iterable[InferenceInput]) -> Iterator[Tagging]:
    """Yield the tags of each sentence's words in the order of the inputs, computed chunk by chunk."""
    for chunk in chunks(inputs, CHUNK):
        for item, tags in zip(chunk, tagger.tags_of([item.text for item in chunk]), strict=True):
            yield Tagging(item.row, json.loads(item.text), tags)


def write_csv(results: Iterable[Result], file: TextIO) -> None:
    """Write a header and one row for each result as soon as it is known."""
    writer = None
    for row in (result.csv_row() for result in results):
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(csv_row(row))
        file.flush()


def write_jsonl(results: Iterable[Result], file: TextIO) -> None:
    """Write one JSON object in a line for each result as soon as it is known."""
    for result in results:
        file.write(json.dumps(result.json_object(), ensure_ascii=False) + "\n")
        file.flush()
