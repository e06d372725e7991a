"""Causal language modelling: training a frozen language model's adapter on texts, or on answers to prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings
from trifed.data import LANGUAGE, Examples
from trifed.tasks.base import Batch, BatchScores, Task, TaskModel
from trifed.tasks.base_model import LoadedBase, ModelRequirement, load_base
from trifed.tasks.generate import generate
from trifed.tasks.padding import TokenSequences, masked_mean, pad_right
from trifed.tasks.prompts import (
    CHAT,
    chat_question,
    end_tokens,
    format_prompt,
    prompt_rows,
    render_chat,
    tokenize_prompts,
    without_end,
)

LANGUAGE_MODEL = ModelRequirement(
    "causal-lm", "a model that predicts the next token, such as Llama, Mistral, Qwen, Gemma, GPT-2 or Phi",
    AutoTokenizer, "tokenizer files", AutoModelForCausalLM,
)  # fmt: skip


class Segment(NamedTuple):
    """A part of a sequence; `learned` includes its tokens in the loss."""

    ids: list[int]
    learned: bool


@dataclass(frozen=True)
class EncodedTokens(TokenSequences):
    """Token sequences for a language model.

    Attributes:
        ids: Token ids of each example.
        learned: For each token of each example 1 if the loss includes it, otherwise 0.
        labels: Class of each example, (n,).
        cut: Number of truncated examples.
    """

    ids: list[list[int]]
    learned: list[list[int]]
    labels: NDArray[np.int64]
    cut: int = 0

    def inputs(self, row: int) -> dict[str, set[Any]]:
        """Return the distinct tokens of an example."""
        return {"": set(self.ids[row])}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Return the given rows on `device`, padded on the right; the attention mask excludes the padding."""
        arrays = {**self.token_arrays(rows), "learned": pad_right([self.learned[row] for row in rows])}
        return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


class LanguageModel(TaskModel):
    """A PEFT-wrapped language model whose loss includes only the tokens marked as learned."""

    def _forward(self, batch: Batch, **options: bool) -> Any:
        """Run the language model on its own inputs of a batch."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "learned"}
        return self.encoder(**inputs, use_cache=False, **options)

    def features(self, batch: Batch) -> Tensor:
        """Return the mean of the last hidden state over the mask, (n, hidden), float32."""
        return masked_mean(
            self._forward(batch, output_hidden_states=True).hidden_states[-1], batch["attention_mask"]
        )

    def _next_tokens(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of k predictions, (k, vocabulary), the correct tokens, (k,), and their examples, (k,)."""
        logits = self._forward(batch).logits
        learned = batch["learned"][:, 1:].bool()
        return logits[:, :-1][learned].float(), batch["input_ids"][:, 1:][learned], learned.nonzero()[:, 0]

    def predictions(self, batch: Batch) -> int:
        """Return the number of tokens that the batch's loss is the mean of."""
        return int(batch["learned"][:, 1:].sum())

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the learned tokens, in nats, a scalar."""
        logits, targets, _ = self._next_tokens(batch)
        return cross_entropy(logits, targets) if len(targets) else logits.sum()

    def score(self, batch: Batch) -> BatchScores:
        """Return the summed cross-entropy, and the share of each example's tokens that are most probable."""
        logits, targets, examples = self._next_tokens(batch)
        hits = (logits.argmax(-1) == targets).float()
        counts, right = (torch.zeros(len(batch["input_ids"]), device=hits.device) for _ in range(2))
        counts.index_add_(0, examples, torch.ones_like(hits))
        right.index_add_(0, examples, hits)
        loss = cross_entropy(logits, targets, reduction="sum")
        return BatchScores(loss, len(targets), right / counts.clamp(min=1), torch.zeros(0, dtype=torch.int64))


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedTokens:
    """Tokenize conversations, prompts with answers, or texts.

    Raises:
        ModelError: `model.max_length` exceeds the model's limit, or a chat template is needed and missing.
    """
    check_length(base, settings)
    if "text" in examples.inputs:
        return _encode_texts(base.processor, examples, settings)
    sequences = _sequences(base.processor, examples.inputs, settings)
    truncated = [_truncate(list(segments), settings.max_length) for segments in sequences]
    return EncodedTokens(
        [[token for segment in segments for token in segment.ids] for segments, _ in truncated],
        [[int(segment.learned) for segment in segments for _ in segment.ids] for segments, _ in truncated],
        examples.labels,
        sum(cut for _, cut in truncated),
    )


def check_length(base: LoadedBase, settings: ModelSettings) -> None:
    """Raise `ModelError` if `model.max_length` exceeds the model's limit."""
    most = getattr(base.model.config.get_text_config(), "max_position_embeddings", None) or settings.max_length
    if settings.max_length > most:
        raise ModelError(
            f"model.max_length: got {settings.max_length}, expected at most {most}, the limit of this model; "
            f"set it to {most} or less"
        )


def _encode_texts(tokenizer: Any, examples: Examples, settings: ModelSettings) -> EncodedTokens:
    """Tokenize texts, each with an end token, and pack them into blocks of full length or keep one per example."""
    rows = [ids + end_tokens(tokenizer) for ids in _tokenize(tokenizer, examples.inputs["text"])]
    if settings.packing:
        tokens = [token for row in rows for token in row]
        labels = np.repeat(examples.labels, [len(row) for row in rows]) if rows else examples.labels
        starts = range(0, max(0, len(tokens) - 1), settings.max_length)  # a single token has no prediction
        blocks = [tokens[start : start + settings.max_length] for start in starts]
        return EncodedTokens(
            blocks, [[1] * len(block) for block in blocks], labels[:: settings.max_length][: len(blocks)]
        )
    kept = [row[: settings.max_length] for row in rows]
    cut = sum(len(row) > settings.max_length for row in rows)
    return EncodedTokens(kept, [[1] * len(row) for row in kept], examples.labels, cut)


def _tokenize(tokenizer: Any, texts: Sequence[str], *, start: bool = True) -> list[list[int]]:
    """Return the tokens of each text without an end token; `start` includes the tokenizer's start token."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=start, truncation=False, verbose=False)
    rows: list[list[int]] = encoded["input_ids"]
    return [without_end(ids, tokenizer) for ids in rows] if start else rows


def _sequences(
    tokenizer: Any, inputs: Mapping[str, list[Any]], settings: ModelSettings
) -> Iterator[Iterator[Segment]]:
    """Yield the segments of each conversation, or of each prompt with its answer."""
    if "messages" in inputs:
        return (_chat_segments(tokenizer, json.loads(messages)) for messages in inputs["messages"])
    return (_prompt_segments(tokenizer, *row, settings) for row in prompt_rows(inputs, "answer"))


def _prompt_segments(
    tokenizer: Any, prompt: str, context: str, answer: str, settings: ModelSettings
) -> Iterator[Segment]:
    """Yield the segments of a prompt and of its answer, of which the answer is learned."""
    if settings.template == CHAT:
        turns = [
            {"role": "user", "content": chat_question(prompt, context)},
            {"role": "assistant", "content": answer},
        ]
        yield from _chat_segments(tokenizer, turns)
        return
    yield Segment(_tokenize(tokenizer, [format_prompt(prompt, context, settings)])[0], learned=False)
    yield Segment(_tokenize(tokenizer, [answer], start=False)[0] + end_tokens(tokenizer), learned=True)


def _chat_segments(tokenizer: Any, messages: list[dict[str, str]]) -> Iterator[Segment]:
    """Yield a conversation's segments; the assistant's messages, each with its end token, are learned."""
    previous = ""
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render_chat(tokenizer, messages[:place], answer=True)
        whole = render_chat(tokenizer, messages[: place + 1], answer=False)
        yield Segment(_tokenize(tokenizer, [prompt.removeprefix(previous)], start=False)[0], learned=False)
        yield Segment(_tokenize(tokenizer, [whole.removeprefix(prompt)], start=False)[0], learned=True)
        previous = whole


def _truncate(segments: list[Segment], most: int) -> tuple[list[Segment], bool]:
    """Truncate to `most` tokens: first after the first segment's first token, then at the end of the sequence.

    Returns:
        The segments, and whether they were truncated.
    """
    over = sum(len(segment.ids) for segment in segments) - most
    if over <= 0:
        return segments, False
    first = segments[0]
    drop = min(over, max(0, len(first.ids) - 1))
    kept = [first._replace(ids=first.ids[:1] + first.ids[1 + drop :]), *segments[1:]]
    room = most
    for place, segment in enumerate(kept):
        kept[place] = segment._replace(ids=segment.ids[:room])
        room -= len(kept[place].ids)
    return kept, True


def generate_answers(
    model: TaskModel, base: LoadedBase, inputs: Mapping[str, Sequence[Any]], settings: ModelSettings, tokens: int
) -> list[str]:
    """Generate answers of at most `tokens` tokens; `inputs` has "prompt" and optionally "input"."""
    return generate(model.encoder, base.processor, tokenize_prompts(base.processor, inputs, settings), tokens)


def build_language_model(
    encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings
) -> LanguageModel:
    """Build the model around an encoder; it has no head, so `labels` and `settings` are not used."""
    return LanguageModel(encoder, base.model.config.get_text_config().hidden_size)


TASK = Task(
    name="causal-lm",
    metric="next-token accuracy",
    roles=LANGUAGE,
    load=partial(load_base, LANGUAGE_MODEL),
    encode=encode,
    build=build_language_model,
    generate=generate_answers,
    output="answer",
)
