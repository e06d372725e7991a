"""Causal language modelling: training a frozen language model's adapter on texts, or on answers to prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings
from trifed.data import LANGUAGE, Examples
from trifed.data.columns import before_answer
from trifed.tasks.base import Batch, BatchScores, Task, TaskModel
from trifed.tasks.base_model import LoadedBase, load_base
from trifed.tasks.chat import render_conversation
from trifed.tasks.prompts import (
    CHAT,
    chat_question,
    end_tokens,
    format_prompt,
    prompt_rows,
    render_chat,
    without_end,
)
from trifed.tasks.tokens import EncodedTokens, check_vocabulary, masked_mean, pad_left

Token = tuple[int, int]
"""A token id, and 1 if the loss includes the token, otherwise 0."""


class LanguageModel(TaskModel):
    """A PEFT-wrapped language model whose loss includes only the tokens marked as learned.

    Attributes:
        not_read: Names of a batch's tensors that are no inputs of the language model.
    """

    not_read: tuple[str, ...] = ("learned", "labels")

    def _forward(self, batch: Batch, **options: bool) -> Any:
        """Run the language model on its own inputs of a batch."""
        inputs = {name: tensor for name, tensor in batch.items() if name not in self.not_read}
        return self.encoder(**inputs, use_cache=False, **options)

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the token that each position is to predict, and 1 where it is learned, (n, length) each."""
        return batch["input_ids"][:, 1:], batch["learned"][:, 1:]

    def features(self, batch: Batch) -> Tensor:
        """Return the mean of the last hidden state over the mask, (n, hidden), float32."""
        return masked_mean(
            self._forward(batch, output_hidden_states=True).hidden_states[-1], batch["attention_mask"]
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return logits, (n, length, vocabulary)."""
        logits: Tensor = self._forward(batch).logits
        return logits

    def predictions(self, batch: Batch) -> int:
        """Return the number of tokens that the batch's loss is the mean of."""
        return int(self.targets(batch)[1].sum())

    def loss_of(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the learned tokens by logits, in nats, a scalar."""
        logits, targets, _ = self._next_tokens(outputs, batch)
        return cross_entropy(logits, targets) if len(targets) else logits.sum()

    def score(self, batch: Batch) -> BatchScores:
        """Return the summed cross-entropy, and the share of each example's tokens that are most probable."""
        logits, targets, examples = self._next_tokens(self(batch), batch)
        hits = (logits.argmax(-1) == targets).float()
        zeros = torch.zeros(len(batch["input_ids"]), device=hits.device)
        counts = zeros.index_add(0, examples, torch.ones_like(hits)).clamp(min=1)
        return BatchScores(
            loss=cross_entropy(logits, targets, reduction="sum"),
            count=len(targets),
            right=zeros.index_add(0, examples, hits) / counts,
            predictions=torch.zeros(0, dtype=torch.int64),
        )

    def _next_tokens(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of k predictions, (k, vocabulary), the correct tokens, (k,), and their examples, (k,).

        Logits of positions that `batch` does not have, the padding of wider batches beside it, are not used.
        """
        tokens, learned = self.targets(batch)
        chosen = learned.bool()
        logits = outputs[:, : chosen.shape[1]][chosen].float()
        return logits, tokens[chosen], chosen.nonzero()[:, 0]


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedTokens:
    """Tokenize conversations, prompts with answers, or texts.

    Raises:
        ModelError: `model.max_length` exceeds the model's limit, its tokenizer has more tokens than the model, or
            a chat template is missing or refuses a conversation.
    """
    check_length(base, settings)
    if "text" in examples.inputs:
        encoded = _encode_texts(base.processor, examples, settings)
        check_vocabulary(base.model, encoded.ids)
        return encoded
    sequences = list(_sequences(base.processor, examples.inputs, settings))
    check_vocabulary(base.model, ([token for token, _ in tokens] for tokens in sequences))
    kept = [_truncate(tokens, settings.max_length) for tokens in sequences]
    return EncodedTokens(
        [[token for token, _ in tokens] for tokens in kept],
        examples.labels,
        cut=sum(len(tokens) > settings.max_length for tokens in sequences),
        more={"learned": [[learned for _, learned in tokens] for tokens in kept]},
    )


def check_length(base: LoadedBase, settings: ModelSettings) -> None:
    """Raise `ModelError` if `model.max_length` exceeds the model's limit."""
    most = most_positions(base) or settings.max_length
    if settings.max_length > most:
        raise ModelError(
            f"model.max_length: got {settings.max_length}, expected at most {most}, the limit of this model; "
            f"set it to {most} or less"
        )


def most_positions(base: LoadedBase) -> int | None:
    """Return the most tokens that a model can read or write at once; None if its configuration sets no limit."""
    names = ("max_position_embeddings", "max_encoder_position_embeddings", "max_decoder_position_embeddings")
    config = base.model.config.get_text_config()
    return min((int(most) for name in names if (most := getattr(config, name, None))), default=None)


def _encode_texts(tokenizer: Any, examples: Examples, settings: ModelSettings) -> EncodedTokens:
    """Tokenize texts, each with an end token, and pack them into blocks of full length or keep one per example."""
    most, labels = settings.max_length, examples.labels
    rows = [ids + end_tokens(tokenizer) for ids in _tokenize(tokenizer, examples.inputs["text"])]
    kept, cut = [row[:most] for row in rows], sum(len(row) > most for row in rows)
    if settings.packing:
        tokens = [token for row in rows for token in row]
        starts = range(0, max(0, len(tokens) - 1), most)  # a single token has no prediction
        kept, cut = [tokens[start : start + most] for start in starts], 0
        labels = np.repeat(labels, np.fromiter(map(len, rows), np.int64))[::most][: len(kept)]
    return EncodedTokens(kept, labels, cut, more={"learned": [[1] * len(row) for row in kept]})


def _tokenize(tokenizer: Any, texts: Sequence[str], *, start: bool = True) -> list[list[int]]:
    """Return the tokens of each text without an end token; `start` includes the tokenizer's start token."""
    if not texts:
        return []
    rows = tokenizer(list(texts), add_special_tokens=start, truncation=False, verbose=False)["input_ids"]
    return [without_end(ids, tokenizer) if start else ids for ids in rows]


def _sequences(tokenizer: Any, inputs: Mapping[str, list[Any]], settings: ModelSettings) -> Iterator[list[Token]]:
    """Yield the tokens of each conversation, or of each prompt with its answer, which is learned."""
    if "messages" in inputs:
        yield from (_chat_tokens(tokenizer, json.loads(messages)) for messages in inputs["messages"])
        return
    for prompt, context, answer in prompt_rows(inputs, "answer"):
        if settings.template == CHAT:
            yield _chat_tokens(
                tokenizer, [_user_message(prompt, context), {"role": "assistant", "content": answer}]
            )
        else:
            learned = _tokenize(tokenizer, [answer], start=False)[0] + end_tokens(tokenizer)
            yield _marked(_prompt_ids(tokenizer, prompt, context, settings), learned)


def _marked(prompt: list[int], learned: list[int]) -> list[Token]:
    return [*zip(prompt, repeat(0)), *zip(learned, repeat(1))]


def _user_message(prompt: str, context: str) -> dict[str, str]:
    return {"role": "user", "content": chat_question(prompt, context)}


def _prompt_ids(tokenizer: Any, prompt: str, context: str, settings: ModelSettings) -> list[int]:
    """Tokenize the text before an answer."""
    if settings.template == CHAT:
        text = render_chat(tokenizer, [_user_message(prompt, context)], answer=True)
        return _tokenize(tokenizer, [text], start=False)[0]
    return _tokenize(tokenizer, [format_prompt(prompt, context, settings)])[0]


def _chat_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> list[Token]:
    """Return a conversation's tokens; the assistant's messages, each with its end token, are learned.

    The text is tokenized as a whole, as the model sees it when it answers. A token belongs to the assistant if it
    ends within a message of the assistant.
    """
    chat = render_conversation(tokenizer, messages)
    if not tokenizer.is_fast:  # it does not tell where its tokens lie
        cuts = [0, *(place for part in chat.learned for place in part), len(chat.text)]
        parts = [chat.text[first:end] for first, end in pairwise(cuts)]
        rows = _tokenize(tokenizer, parts, start=False)
        return [(token, place % 2) for place, row in enumerate(rows) for token in row]
    found = tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        (token, int(any(start < last <= end for start, end in chat.learned)))
        for token, (_, last) in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]


def _truncate(tokens: list[Token], most: int) -> list[Token]:
    """Truncate to `most` tokens: first the first prompt after its first token, then the end of the sequence."""
    prompt = next((index for index, (_, learned) in enumerate(tokens) if learned), len(tokens))
    drop = max(0, min(len(tokens) - most, prompt - 1))
    return (tokens[:1] + tokens[1 + drop :])[:most]


def generate_answers(
    model: TaskModel, base: LoadedBase, inputs: Mapping[str, Sequence[Any]], settings: ModelSettings, tokens: int
) -> list[str]:
    """Generate answers of at most `tokens` tokens.

    `inputs` has "prompt" and optionally "input", or conversations as "messages": the answer is what the assistant
    says last, from the messages before it.
    """
    if "messages" in inputs:
        talks = [before_answer(json.loads(messages))[0] for messages in inputs["messages"]]
        texts = [render_chat(base.processor, talk, answer=True) for talk in talks]
        rows = _tokenize(base.processor, texts, start=False)
    else:
        rows = [_prompt_ids(base.processor, prompt, context, settings) for prompt, context in prompt_rows(inputs)]
    check_vocabulary(base.model, rows)
    shortened = [row[:1] + row[1 + max(0, len(row) - settings.max_length) :] for row in rows]
    return generate(model.encoder, base.processor, shortened, tokens, {})


def generate(
    encoder: Any, tokenizer: Any, rows: Sequence[Sequence[int]], tokens: int, more: Mapping[str, Tensor]
) -> list[str]:
    """Generate a continuation of each row of tokens, always with the most probable token.

    Args:
        encoder: The language model.
        tokenizer: Its tokenizer.
        rows: Token ids of each prompt.
        tokens: The most new tokens; generation stops earlier at the end token.
        more: Additional inputs of the model, such as pixels.
    """
    device = next(encoder.parameters()).device
    end = tokenizer.eos_token_id or 0
    inputs = {"input_ids": pad_left(rows, end), "attention_mask": pad_left([[1] * len(row) for row in rows], 0)}
    generated = encoder.generate(
        **{name: tensor.to(device) for name, tensor in {**inputs, **more}.items()},
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=end,
    )
    new = generated[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def build_language_model(
    encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings
) -> LanguageModel:
    """Build the model around an encoder; it has no head, so `labels` and `settings` are not used."""
    return LanguageModel(encoder, base.model.config.get_text_config().hidden_size)


TASK = Task(
    name="causal-lm",
    roles=LANGUAGE,
    load=partial(
        load_base,
        task="causal-lm",
        description="a model that predicts the next token, such as Llama, Mistral, Qwen, Gemma, GPT-2 or Phi",
        processor=AutoTokenizer,
        files="tokenizer files",
        model=AutoModelForCausalLM,
    ),
    encode=encode,
    build=build_language_model,
    generate=generate_answers,
    code="language_model",
    output="answer",
)
