"""A client's model that tags the words of sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from trifed.data.tags import OUTSIDE, words_of
from trifed.federation.client_model import ClientModel, load_model
from trifed.federation.training.evaluation import length_order
from trifed.tasks.token_classification import MARK, EncodedSentences


@dataclass(frozen=True)
class Tagger(ClientModel):
    """A model that chooses a tag for each word; `labels` are the tags."""

    output = "tags"

    def tag(self, sentences: Sequence[str | Sequence[str]], batch_size: int = 64) -> list[list[str]]:
        """Return the tag of each word of each sentence.

        Args:
            sentences: Lists of words, or texts with spaces between their words.
            batch_size: Sentences that are computed together.

        Raises:
            DataError: A sentence has no words.
        """
        return self.tags_of([words_of(sentence) for sentence in sentences], batch_size)

    @torch.no_grad()
    def tags_of(self, sentences: Sequence[str], batch_size: int = 64) -> list[list[str]]:
        """Return the tag of each word of sentences, JSON lists of words.

        A sentence that is longer than the model reads is read in parts. A word without any token is outside of
        entities.
        """
        words: list[list[str]] = [json.loads(sentence) for sentence in sentences]
        usual = self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0
        found = [[usual] * len(sentence) for sentence in words]
        left = {row: 0 for row, _ in enumerate(words)}
        self.model.eval()
        while left:
            rows, starts = list(left), list(left.values())
            parts = [json.dumps(words[row][start:]) for row, start in left.items()]
            data = cast(EncodedSentences, self.encode({"text": parts}))
            for batch in length_order(data, batch_size):
                inputs = data.batch(batch, self.device)
                for place, tags, marks in zip(
                    batch.tolist(), self.model(inputs).argmax(-1).cpu(), inputs[MARK].cpu(), strict=True
                ):
                    for word, tag in zip(data.words[place], tags[marks > 0].tolist(), strict=True):
                        found[rows[place]][starts[place] + word] = tag
            cut = [len(ids) >= self.settings.max_length for ids in data.ids]
            ends = [1 + start + max(read, default=0) for start, read in zip(starts, data.words, strict=True)]
            left = {
                row: end
                for row, end, is_cut in zip(rows, ends, cut, strict=True)
                if is_cut and end < len(words[row])
            }
        return [[self.labels[number] for number in numbers] for numbers in found]


def load_tagger(folder: str | Path, base: str | None = None) -> Tagger:
    """Load a client's model that tags words; see `load_model` for arguments and errors."""
    return load_model(Tagger, folder, base)
