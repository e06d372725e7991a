"""A client's language model on new prompts: answers, as they are made, and written."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TextIO

from trifed.config.settings import TrainingSettings
from trifed.export.inference_inputs import Asked, asked_of
from trifed.export.locate import LocatedModel
from trifed.federation.client_model import Writer, load_writer
from trifed.federation.training import choose_device

CHUNK = 16
"""Prompts that are answered together."""


@dataclass(frozen=True)
class Answer:
    """What a model writes behind one prompt."""

    asked: Asked
    text: str


def load_located_writer(found: LocatedModel, base: str | None = None) -> Writer:
    """The language model that was found, on CUDA where there is one; see `load_writer` for the errors."""
    writer = load_writer(found.folder, base)
    writer.model.to(choose_device(TrainingSettings()))
    return writer


def answer(writer: Writer, asked: Iterable[Asked], tokens: int) -> Iterator[Answer]:
    """Answers of at most `tokens` tokens in the order of the prompts, a chunk at a time."""
    waiting = iter(asked)
    while chunk := list(islice(waiting, CHUNK)):
        texts = writer.answer_all(asked_of(chunk), tokens)
        for item, text in zip(chunk, texts, strict=True):
            yield Answer(item, text)


def write_csv(answers: Iterable[Answer], file: TextIO) -> None:
    """`row,prompt,input,answer`."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "prompt", "input", "answer"])
    for item in answers:
        writer.writerow([item.asked.row, item.asked.text, item.asked.pair or "", item.text])
        file.flush()


def write_jsonl(answers: Iterable[Answer], file: TextIO) -> None:
    """One object a line: row, prompt, perhaps input, answer."""
    for item in answers:
        record: dict[str, object] = {"row": item.asked.row, "prompt": item.asked.text}
        record |= {"input": item.asked.pair} if item.asked.pair else {}
        file.write(json.dumps({**record, "answer": item.text}, ensure_ascii=False) + "\n")
        file.flush()
