"""Answers of a client's language model to new prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from trifed.export.inference_inputs import InferenceInput, by_role
from trifed.federation.client_model import Writer

CHUNK = 16
"""Prompts that are answered together."""


@dataclass(frozen=True)
class Answer:
    """The answer of a model to one prompt."""

    input: InferenceInput
    text: str

    def csv_row(self) -> dict[str, object]:
        """Return `row,prompt,input,answer`."""
        prompt = {"row": self.input.row, "prompt": self.input.text}
        return {**prompt, "input": self.input.pair or "", "answer": self.text}

    def json_object(self) -> dict[str, object]:
        """Return row, prompt, perhaps input, and answer."""
        return {name: value for name, value in self.csv_row().items() if name != "input" or value}


def answer(writer: Writer, inputs: Iterable[InferenceInput], tokens: int) -> Iterator[Answer]:
    """Yield answers of at most `tokens` tokens in the order of the prompts, computed chunk by chunk."""
    waiting = iter(inputs)
    while chunk := list(islice(waiting, CHUNK)):
        yield from map(Answer, chunk, writer.answer_all(by_role(chunk, prompts=True), tokens))
