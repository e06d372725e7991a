"""Token classification: a frozen encoder with an adapter, and a linear head on the first token of each word.

Devlin et al., "BERT", NAACL 2019, arXiv 1810.04805, section 5.3: the first sub-token stands for a word. A sentence
is tokenized as its words with spaces between them, as its text was written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification

from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings
from trifed.data import TAGGED, Examples
from trifed.data.tags import TAGS, are_entities
from trifed.tasks.base import Batch, BatchScores, Task, TaskModel
from trifed.tasks.base_model import LoadedBase
from trifed.tasks.entities import count_entities
from trifed.tasks.text_classification import check_positions, load_encoder
from trifed.tasks.tokens import EncodedTokens, check_vocabulary, masked_mean

MARK = "tags"
"""Name in a batch of 1 + the tag's number at the first token of each word, and 0 at all other tokens."""


class Tagger(TaskModel):
    """A PEFT-wrapped encoder, and a linear head on the last hidden state of each token."""

    def __init__(self, encoder: nn.Module, hidden: int, tags: Sequence[str]) -> None:
        super().__init__(encoder, hidden)
        self.head = nn.Linear(hidden, len(tags))
        self.tags = list(tags)
        self.counts_entities = are_entities(tags)

    def _hidden(self, batch: Batch) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", MARK)}
        hidden: Tensor = self.encoder(**inputs).last_hidden_state
        return hidden

    def features(self, batch: Batch) -> Tensor:
        """Return the mean of the last hidden state over the mask, (n, hidden), float32."""
        return masked_mean(self._hidden(batch), batch["attention_mask"])

    def forward(self, batch: Batch) -> Tensor:
        """Return logits of every token, (n, length, n_tags), float32."""
        logits: Tensor = self.head(self._hidden(batch).float())
        return logits.float()

    def predictions(self, batch: Batch) -> int:
        """Return the number of words that the batch's loss is the mean of."""
        return int((batch[MARK] > 0).sum())

    def loss_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the words' tags by logits, (n, length, n_tags), in nats, a scalar."""
        chosen = batch[MARK] > 0
        logits = outputs[:, : chosen.shape[1]][chosen]
        return cross_entropy(logits, batch[MARK][chosen] - 1) if len(logits) else logits.sum()

    def score(self, batch: Batch) -> BatchScores:
        """Return the summed cross-entropy, the share of each sentence's words that are right, and its entities."""
        outputs, marks = self(batch), batch[MARK]
        chosen = marks > 0
        logits, targets = outputs[chosen], marks[chosen] - 1
        hits = (outputs.argmax(-1) == marks - 1) & chosen
        return BatchScores(
            loss=cross_entropy(logits, targets, reduction="sum"),
            count=len(targets),
            right=hits.sum(1) / chosen.sum(1).clamp(min=1),
            predictions=torch.zeros(0, dtype=torch.int64),
            entities=self._entities(outputs.argmax(-1), marks),
        )

    def _entities(self, found: Tensor, marks: Tensor) -> Tensor:
        """Return numbers of true, predicted and rightly predicted entities, (n, 3), or (0, 3) without any kind."""
        if not self.counts_entities:
            return torch.zeros(0, 3, dtype=torch.int64)
        counts = [
            count_entities(*([self.tags[int(tag)] for tag in tags[mark > 0]] for tags in (mark - 1, row)))
            for row, mark in zip(found.cpu(), marks.cpu(), strict=True)
        ]
        return torch.tensor(counts, dtype=torch.int64).reshape(-1, 3)


@dataclass(frozen=True)
class EncodedSentences(EncodedTokens):
    """Sentences as token sequences.

    Attributes:
        words: Numbers of the words of each sentence that have a token, in order. Others were cut, or the tokenizer
            makes no token of them.
    """

    words: list[list[int]] = field(kw_only=True)


def first_tokens(offsets: Sequence[Sequence[int]], words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the number of each word that has a token, and its first token.

    Args:
        offsets: Beginning and end of each token in the words with spaces between them; special tokens are empty.
        words: The words.
    """
    token = start = 0
    for word, text in enumerate(words):
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        if token < len(offsets) and offsets[token][0] < start + len(text):
            yield word, token
            token += 1
        start += len(text) + 1


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedSentences:
    """Tokenize sentences; those over `settings.max_length` tokens are truncated and counted.

    Without tags the words of `examples` have the tag 0.

    Raises:
        ModelError: The tokenizer does not say where its tokens lie, or the model has too few positions or tokens.
    """
    tokenizer, limit = base.processor, settings.max_length
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"model.name: the tokenizer of '{base.source}' does not say which token belongs to which word; "
            "choose a model with a fast tokenizer (a tokenizer.json)"
        )
    sentences: list[list[str]] = [json.loads(words) for words in examples.texts]
    if not sentences:
        return EncodedSentences([], examples.labels, pad_id=tokenizer.pad_token_id, more={MARK: []}, words=[])
    tags: list[list[int]] = [json.loads(row) for row in examples.inputs.get(TAGS, [])]
    texts = [" ".join(words) for words in sentences]
    whole = dict(tokenizer(texts, truncation=False, return_offsets_mapping=True, verbose=False))
    long = [row for row, ids in enumerate(whole["input_ids"]) if len(ids) > limit]
    if long:
        cut = tokenizer(
            [texts[row] for row in long], truncation=True, max_length=limit, return_offsets_mapping=True
        )
        for name in whole:
            for place, row in enumerate(long):
                whole[name][row] = cut[name][place]
    check_positions(base.model, whole["input_ids"], limit)
    check_vocabulary(base.model, whole["input_ids"], texts)
    marks, known = [], []
    for row, words in enumerate(sentences):
        places = list(first_tokens(whole["offset_mapping"][row], words))
        mark = [0] * len(whole["input_ids"][row])
        for word, token in places:
            mark[token] = 1 + (tags[row][word] if tags else 0)
        marks.append(mark)
        known.append([word for word, _ in places])
    types = {"token_type_ids": whole["token_type_ids"]} if "token_type_ids" in whole else {}
    return EncodedSentences(
        whole["input_ids"],
        examples.labels,
        len(long),
        tokenizer.pad_token_id,
        {**types, MARK: marks},
        words=known,
    )


def _build(encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> Tagger:
    """Build the tagger around an encoder; `settings` are not used."""
    return Tagger(encoder, base.model.config.hidden_size, labels)


TASK = Task(
    name="token-classification",
    roles=TAGGED,
    load=partial(
        load_encoder,
        task="token-classification",
        description="an encoder, such as BERT, RoBERTa, DistilBERT, MPNet, ModernBERT, DeBERTa or ELECTRA",
    ),
    encode=encode,
    build=_build,
    code="tagger",
    native_class=AutoModelForTokenClassification,
    probe=('["yes"]', '["a", "sentence", "of", "some", "more", "words,", "so", "that", "padding", "matters"]'),
    output="tags",
)
