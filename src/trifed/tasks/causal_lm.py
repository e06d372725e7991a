"""Causal language modelling: a frozen language model with an adapter learns texts, or answers to prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from trifed.common.errors import ModelError
from trifed.config.settings import BaseDtype, ModelSettings
from trifed.data import LANGUAGE, Examples
from trifed.tasks.base import Batch, Scored, Task, TaskModel
from trifed.tasks.base_model import LoadedBase, Wanted, load_base
from trifed.tasks.generate import generate
from trifed.tasks.padding import padded
from trifed.tasks.prompts import CHAT, asked, prompted, question, rendered

LANGUAGE_MODEL = Wanted(
    "causal-lm", "a model that predicts the next token, such as Llama, Mistral, Qwen, Gemma, GPT-2 or Phi",
    AutoTokenizer, "tokenizer files", AutoModelForCausalLM,
)  # fmt: skip


class Piece(NamedTuple):
    """A stretch of a sequence. `learned`: does the loss count it?"""

    ids: list[int]
    learned: bool


@dataclass(frozen=True)
class EncodedTokens:
    """Token sequences. `ids`, `learned`: lists of ints an example, the latter 1 where a token is predicted."""

    ids: list[list[int]]
    learned: list[list[int]]
    labels: NDArray[np.int64]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, (n,)."""
        return np.array([len(ids) for ids in self.ids], np.int64)

    def inputs(self, row: int) -> dict[str, set[int]]:
        """The tokens of an example, equal ones once."""
        return {"": set(self.ids[row])}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """The given rows, padded on the right to the longest of them; what stands in the padding is not read."""
        ids = [self.ids[row] for row in rows]
        arrays = {
            "input_ids": padded(ids),
            "attention_mask": padded([[1] * len(row) for row in ids]),
            "learned": padded([self.learned[row] for row in rows]),
        }
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


class LanguageModel(TaskModel):
    """A PEFT-wrapped language model; the loss counts the tokens that are marked as learned."""

    def __init__(self, encoder: nn.Module, hidden: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.hidden = hidden

    def read(self, batch: Batch) -> Batch:
        """What of a batch the language model itself reads."""
        return {name: tensor for name, tensor in batch.items() if name != "learned"}

    def features(self, batch: Batch) -> Tensor:
        """The mean of the last hidden state over the mask, (n, hidden), float32."""
        output = self.encoder(**self.read(batch), output_hidden_states=True, use_cache=False)
        mask = batch["attention_mask"].unsqueeze(-1).float()
        pooled: Tensor = (output.hidden_states[-1].float() * mask).sum(1) / mask.sum(1)
        return pooled

    def _next(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the tokens to be predicted, (k, vocabulary), these tokens, (k,), and their examples, (k,)."""
        output = self.encoder(**self.read(batch), use_cache=False)
        wanted = batch["learned"][:, 1:].bool()
        return output.logits[:, :-1][wanted].float(), batch["input_ids"][:, 1:][wanted], wanted.nonzero()[:, 0]

    def predictions(self, batch: Batch) -> int:
        """How many tokens the loss of the batch is the mean of."""
        return int(batch["learned"][:, 1:].sum())

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the tokens to be predicted, in nats, a scalar."""
        logits, targets, _ = self._next(batch)
        return cross_entropy(logits, targets) if len(targets) else logits.sum()

    def score(self, batch: Batch) -> Scored:
        """Summed cross-entropy, and for each example the share of its tokens that are the most probable ones."""
        logits, targets, examples = self._next(batch)
        hits = (logits.argmax(-1) == targets).float()
        counts, right = (torch.zeros(len(batch["input_ids"]), device=hits.device) for _ in range(2))
        counts.index_add_(0, examples, torch.ones_like(hits))
        right.index_add_(0, examples, hits)
        loss = cross_entropy(logits, targets, reduction="sum")
        return Scored(loss, len(targets), right / counts.clamp(min=1), torch.zeros(0, dtype=torch.int64))


def load_language_model(name: str, dtype: BaseDtype = "float32") -> LoadedBase:
    """A frozen language model and its tokenizer; raises ModelError where it is none."""
    return load_base(name, LANGUAGE_MODEL, dtype)


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedTokens:
    """Tokenise once: conversations, prompts with answers, or texts.

    Raises:
        ModelError: the model reads fewer tokens than allowed, or a conversation and no chat template.
    """
    check_length(base, settings)
    if "text" in examples.inputs:
        return _texts(base.processor, examples, settings)
    made = [
        _cut(list(pieces), settings.max_length) for pieces in _sequences(base.processor, examples.inputs, settings)
    ]
    return EncodedTokens(
        [[token for piece in pieces for token in piece.ids] for pieces, _ in made],
        [[int(piece.learned) for piece in pieces for _ in piece.ids] for pieces, _ in made],
        examples.labels,
        sum(cut for _, cut in made),
    )


def check_length(base: LoadedBase, settings: ModelSettings) -> None:
    """Refuse sequences that are longer than the model reads, by a ModelError."""
    most = getattr(base.model.config.get_text_config(), "max_position_embeddings", None) or settings.max_length
    if settings.max_length > most:
        raise ModelError(
            f"model.max_length: got {settings.max_length}, but this model reads at most {most} tokens; set it to "
            f"{most} or less"
        )


def _texts(tokenizer: Any, examples: Examples, settings: ModelSettings) -> EncodedTokens:
    """All tokens of all texts, an end token behind each; packed into blocks of full length, or a text each."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    rows = [ids + end for ids in _ids(tokenizer, examples.inputs["text"])]
    if settings.packing:
        tokens = [token for row in rows for token in row]
        labels = np.repeat(examples.labels, [len(row) for row in rows]) if rows else examples.labels
        starts = range(0, max(0, len(tokens) - 1), settings.max_length)  # one token alone predicts nothing
        blocks = [tokens[start : start + settings.max_length] for start in starts]
        return EncodedTokens(
            blocks, [[1] * len(block) for block in blocks], labels[:: settings.max_length][: len(blocks)]
        )
    kept = [row[: settings.max_length] for row in rows]
    cut = sum(len(row) > settings.max_length for row in rows)
    return EncodedTokens(kept, [[1] * len(row) for row in kept], examples.labels, cut)


def _ids(tokenizer: Any, texts: Sequence[str], *, start: bool = True) -> list[list[int]]:
    """Tokens of each text, with the start token that the tokenizer puts before it but no end token."""
    if not texts:
        return []
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=start, truncation=False, verbose=False)[
        "input_ids"
    ]
    end = tokenizer.eos_token_id
    return [ids[:-1] if start and ids and ids[-1] == end else ids for ids in found]


def _sequences(
    tokenizer: Any, inputs: dict[str, list[str]] | Any, settings: ModelSettings
) -> Iterator[Iterator[Piece]]:
    if "messages" in inputs:
        return (_spoken(tokenizer, json.loads(messages)) for messages in inputs["messages"])
    contexts = inputs.get("input") or [""] * len(inputs["prompt"])
    rows = zip(inputs["prompt"], contexts, inputs["answer"], strict=True)
    return (_answered(tokenizer, prompt, context, answer, settings) for prompt, context, answer in rows)


def _answered(tokenizer: Any, prompt: str, context: str, answer: str, settings: ModelSettings) -> Iterator[Piece]:
    if settings.template == CHAT:
        turns = [{"role": "user", "content": question(prompt, context)}, {"role": "assistant", "content": answer}]
        yield from _spoken(tokenizer, turns)
        return
    yield Piece(_ids(tokenizer, [asked(prompt, context, settings)])[0], learned=False)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    yield Piece(_ids(tokenizer, [answer], start=False)[0] + end, learned=True)


def _spoken(tokenizer: Any, messages: list[dict[str, str]]) -> Iterator[Piece]:
    """What the assistant says is learned, up to and with what ends it; all else is read only."""
    before = ""
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before_it = rendered(tokenizer, messages[:place], answer=True)
        whole = rendered(tokenizer, messages[: place + 1], answer=False)
        yield Piece(_ids(tokenizer, [before_it.removeprefix(before)], start=False)[0], learned=False)
        yield Piece(_ids(tokenizer, [whole.removeprefix(before_it)], start=False)[0], learned=True)
        before = whole


def _cut(pieces: list[Piece], most: int) -> tuple[list[Piece], bool]:
    """At most `most` tokens: the beginning of the first piece goes, but for its first token, and then the end."""
    over = sum(len(piece.ids) for piece in pieces) - most
    if over <= 0:
        return pieces, False
    first = pieces[0]
    drop = min(over, max(0, len(first.ids) - 1))
    kept = [first._replace(ids=first.ids[:1] + first.ids[1 + drop :]), *pieces[1:]]
    left = most
    for place, piece in enumerate(kept):
        kept[place] = piece._replace(ids=piece.ids[:left])
        left -= len(kept[place].ids)
    return kept, True


def write(
    model: TaskModel, base: LoadedBase, inputs: Mapping[str, Sequence[Any]], settings: ModelSettings, tokens: int
) -> list[str]:
    """What the model writes behind each prompt, at most `tokens` tokens; `inputs`: "prompt", maybe "input"."""
    prompts = inputs["prompt"]
    rows = prompted(base.processor, prompts, inputs.get("input") or [""] * len(prompts), settings)
    return generate(model.encoder, base.processor, rows, tokens)


def _build(encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> LanguageModel:
    return LanguageModel(encoder, base.model.config.get_text_config().hidden_size)


TASK = Task(
    name="causal-lm",
    metric="next-token accuracy",
    roles=LANGUAGE,
    load=load_language_model,
    encode=encode,
    build=_build,
    write=write,
    gives="answer",
)
