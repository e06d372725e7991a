"""Predictions of a client's model for new texts or images, and how results are written."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TextIO

import numpy as np

from trifed.config.settings import TrainingSettings
from trifed.export.inference_inputs import InferenceInput, by_role
from trifed.export.locate import LocatedModel
from trifed.federation.client_model import Classifier, Kind, load_model
from trifed.federation.device_placement import choose_device

CHUNK = 256
"""Texts or images that are predicted together; within a chunk, batches hold inputs of similar length."""


class Result(Protocol):
    """A result for one input, as a row of a table and as a JSON object."""

    def csv_row(self) -> dict[str, object]:
        """Return the cells by column; the columns are the same for all results of a model."""

    def json_object(self) -> dict[str, object]:
        """Return the JSON object."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one text or image. `best`: labels with probabilities, the most probable first."""

    input: InferenceInput
    best: list[tuple[str, float]]

    def csv_row(self) -> dict[str, object]:
        """Return `row,text[,pair],label,probability[,label_2,probability_2,…]`."""
        cells = self._input()
        for number, (label, probability) in enumerate(self.best, start=1):
            suffix = "" if number == 1 else f"_{number}"
            cells |= {f"label{suffix}": label, f"probability{suffix}": f"{probability:.6f}"}
        return cells

    def json_object(self) -> dict[str, object]:
        """Return row, text, perhaps pair, label and probability; and `top` if there are several labels."""
        top = [{"label": label, "probability": round(value, 6)} for label, value in self.best]
        return {**self._input(), **top[0], **({"top": top} if len(top) > 1 else {})}

    def _input(self) -> dict[str, object]:
        pair = {} if self.input.pair is None else {"pair": self.input.pair}
        return {"row": self.input.row, "text" if self.input.image is None else "image": self.input.text, **pair}


def load_located(kind: type[Kind], located: LocatedModel, base: str | None = None) -> Kind:
    """Load a located model, onto CUDA if there is any; see `load_model` for the errors."""
    model = load_model(kind, located.folder, base)
    model.model.to(choose_device(TrainingSettings()))
    return model


def predict(classifier: Classifier, inputs: Iterable[InferenceInput], top: int = 1) -> Iterator[Prediction]:
    """Yield predictions in the order of the inputs, computed chunk by chunk. `top`: labels for each input."""
    waiting = iter(inputs)
    while chunk := list(islice(waiting, CHUNK)):
        probabilities = classifier.probabilities_of(by_role(chunk))
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for item, row, labels in zip(chunk, probabilities, order, strict=True):
            yield Prediction(item, [(classifier.labels[label], float(row[label])) for label in labels])


def write_csv(results: Iterable[Result], file: TextIO) -> None:
    """Write a header and one row for each result as soon as it is known."""
    writer = None
    for row in (result.csv_row() for result in results):
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
        file.flush()


def write_jsonl(results: Iterable[Result], file: TextIO) -> None:
    """Write one JSON object in a line for each result as soon as it is known."""
    for result in results:
        file.write(json.dumps(result.json_object(), ensure_ascii=False) + "\n")
        file.flush()
