"""A client's model on new texts or images: labels and probabilities, as they are made and written."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TextIO

import numpy as np

from trifed.config.settings import TrainingSettings
from trifed.export.inference_inputs import Asked, split_inputs
from trifed.export.locate import LocatedModel
from trifed.federation.client_model import Classifier, load_client
from trifed.federation.retrieval import RetrievalModel, load_retrieval_model
from trifed.federation.training import choose_device

CHUNK = 256
"""Texts or images that are predicted together; inside, batches of like length."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one text or image. `best`: labels with their probabilities, the most probable first."""

    asked: Asked
    best: list[tuple[str, float]]


def load_located(found: LocatedModel, base: str | None = None) -> Classifier:
    """The classifier of a model that was found, on CUDA where there is one; see `load_client` for the errors."""
    classifier = load_client(found.folder, base)
    classifier.model.to(choose_device(TrainingSettings()))
    return classifier


def load_located_retrieval_model(found: LocatedModel, base: str | None = None) -> RetrievalModel:
    """The same of a model of images and captions; see `load_matcher` for the errors."""
    matcher = load_retrieval_model(found.folder, base)
    matcher.model.to(choose_device(TrainingSettings()))
    return matcher


def predict(classifier: Classifier, asked: Iterable[Asked], top: int = 1) -> Iterator[Prediction]:
    """Predictions in the order of the texts, a chunk at a time. `top`: how many labels each, or all there are."""
    waiting = iter(asked)
    while chunk := list(islice(waiting, CHUNK)):
        probabilities = classifier.probabilities_of(split_inputs(chunk))
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        for item, row, labels in zip(chunk, probabilities, order, strict=True):
            yield Prediction(item, [(classifier.labels[label], float(row[label])) for label in labels])


def write_csv(predictions: Iterable[Prediction], file: TextIO, top: int) -> None:
    """`row,text[,pair],label,probability[,label_2,probability_2,…]`; a chunk is written as soon as it is known."""
    writer = csv.writer(file, lineterminator="\n")
    for number, (asked, best) in enumerate((p.asked, p.best) for p in predictions):
        texts = [asked.text] if asked.pair is None else [asked.text, asked.pair]
        if number == 0:
            first = "text" if asked.image is None else "image"
            writer.writerow(["row", first, "pair"][: 1 + len(texts)] + _header(min(top, len(best))))
        writer.writerow([asked.row, *texts, *(cell for label, p in best for cell in (label, f"{p:.6f}"))])
        if number % CHUNK == CHUNK - 1:
            file.flush()


def _header(count: int) -> list[str]:
    ends = ["", *(f"_{number}" for number in range(2, count + 1))]
    return [name + end for end in ends for name in ("label", "probability")]


def write_jsonl(predictions: Iterable[Prediction], file: TextIO, top: int) -> None:
    """One object a line: row, text, perhaps pair, label, probability; and `top` if that is above 1."""
    for number, (asked, best) in enumerate((p.asked, p.best) for p in predictions):
        record: dict[str, object] = {"row": asked.row, "text" if asked.image is None else "image": asked.text}
        if asked.pair is not None:
            record["pair"] = asked.pair
        record |= {"label": best[0][0], "probability": round(best[0][1], 6)}
        if top > 1:
            record["top"] = [{"label": label, "probability": round(p, 6)} for label, p in best]
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if number % CHUNK == CHUNK - 1:
            file.flush()
