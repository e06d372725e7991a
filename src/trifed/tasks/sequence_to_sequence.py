"""Sequence-to-sequence models such as T5 and BART: the encoder reads a prompt, the decoder learns its answer.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (T5), JMLR 2020,
arXiv 1910.10683. Loss and scores are those of `causal_lm`, over the tokens of the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from trifed.common.errors import ModelError
from trifed.config.settings import BaseDtype, ModelSettings
from trifed.data import QUESTIONS, Examples
from trifed.tasks.base import Batch, Task, TaskModel
from trifed.tasks.base_model import LoadedBase, load_base
from trifed.tasks.causal_lm import LanguageModel, check_length, most_positions
from trifed.tasks.prompts import CHAT, chat_question, end_tokens, format_prompt, prompt_rows, render_chat
from trifed.tasks.tokens import MULTIPLE, EncodedTokens, check_vocabulary, masked_mean, pad_right


class SequenceToSequenceModel(LanguageModel):
    """A PEFT-wrapped encoder-decoder whose loss includes the answer's tokens, each after the true ones."""

    not_read = ("learned", "labels", "answer")

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the answer's tokens, and 1 where the loss includes them, (n, length) each."""
        return batch["answer"], batch["learned"]

    def features(self, batch: Batch) -> Tensor:
        """Return the mean of the encoder's last hidden state over the mask, (n, hidden), float32."""
        encoder: Any = self.encoder
        mask = batch["attention_mask"]
        output = encoder.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask)
        return masked_mean(output.last_hidden_state, mask)


@dataclass(frozen=True)
class EncodedPairs(EncodedTokens):
    """Prompts as token ids, and in `more` what the decoder reads and what it is to answer.

    Attributes:
        encoder: Beginning of the names of the encoder's layers.
    """

    encoder: str = field(kw_only=True)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each prompt with its answer, (n,)."""
        answers = (len(ids) for ids in self.more["answer"])
        return np.array([len(ids) + answer for ids, answer in zip(self.ids, answers, strict=True)], np.int64)

    def inputs(self, row: int) -> dict[str, set[Any]]:
        """Return the distinct tokens of a prompt for the encoder's layers, and of an answer for all layers.

        The decoder reads both. Its count is that of the answer, the smaller of the two.
        """
        return {self.encoder: set(self.ids[row]), "": set(self.more["decoder_input_ids"][row])}


def load_encoder_decoder(name: str, dtype: BaseDtype = "float32") -> LoadedBase:
    """Load a frozen encoder-decoder and its tokenizer.

    Raises:
        ModelError: There is no such model of this name, or it names no token with which the decoder begins.
    """
    base = load_base(
        name,
        dtype,
        task="sequence-to-sequence",
        description="an encoder-decoder that writes text, such as T5, mT5, BART or Pegasus",
        processor=AutoTokenizer,
        files="tokenizer files",
        model=AutoModelForSeq2SeqLM,
    )
    try:
        _decoder_inputs(base.model, [0, 0])
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"model.name: the config.json of '{name}' names no token with which the decoder begins; set "
            "decoder_start_token_id there, for T5 the padding's"
        ) from error
    return base


def _decoder_inputs(model: Any, answer: list[int]) -> list[int]:
    """Return the tokens that the decoder reads while it learns `answer`: a start token, and all but the last."""
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift is not None:  # a multilingual model may begin with the language that ends the answer
        shifted: list[int] = shift(labels=torch.tensor([answer]))[0].tolist()
        return shifted
    return [int(model.config.decoder_start_token_id), *answer[:-1]]


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedPairs:
    """Tokenize prompts and answers, each of at most `settings.max_length` tokens, cut at the end.

    Raises:
        ModelError: `model.max_length` exceeds the model's limit, or its tokenizer has more tokens than the model.
    """
    check_length(base, settings)
    model: Any = base.model
    tokenizer, inputs, most = base.processor, examples.inputs, settings.max_length
    prompts, cut_prompts = _prompts(base, inputs, settings)
    answers, cut_answers = _tokenize(tokenizer, inputs["answer"], _longest_answer(base, most), answers=True)
    check_vocabulary(model.get_decoder(), answers, inputs["answer"])
    names = {id(module): name for name, module in model.named_modules()}
    return EncodedPairs(
        prompts,
        examples.labels,
        cut=int((cut_prompts | cut_answers).sum()),
        pad_id=tokenizer.pad_token_id or 0,
        more={
            "decoder_input_ids": [_decoder_inputs(model, answer) for answer in answers],
            "answer": answers,
            "learned": [[1] * len(answer) for answer in answers],
        },
        encoder=f"{names[id(model.get_encoder())]}.",
    )


def _longest_answer(base: LoadedBase, most: int) -> int:
    """Return the most tokens of an answer, at most `most`: in a stack `join` may pad it by one multiple more."""
    positions, multiple = most_positions(base), max(MULTIPLE.values())
    return most if positions is None else min(most, max(multiple, positions // multiple * multiple - multiple))


def _prompts(
    base: LoadedBase, inputs: Mapping[str, Sequence[Any]], settings: ModelSettings
) -> tuple[list[list[int]], NDArray[np.bool_]]:
    """Return the tokens that the encoder reads, and which prompts were cut, (n,)."""
    texts = [_prompt(base.processor, prompt, context, settings) for prompt, context in prompt_rows(inputs)]
    rows, cut = _tokenize(base.processor, texts, settings.max_length, special=settings.template != CHAT)
    check_vocabulary(base.model, rows, texts)
    return rows, cut


def _prompt(tokenizer: Any, prompt: str, context: str, settings: ModelSettings) -> str:
    """Return the text that the encoder reads: without a template the prompt, and the input after an empty line."""
    question = chat_question(prompt, context)
    if settings.template == CHAT:
        return render_chat(tokenizer, [{"role": "user", "content": question}], answer=True)
    return question if settings.template is None else format_prompt(prompt, context, settings)


def _tokenize(
    tokenizer: Any, texts: Sequence[str], most: int, *, answers: bool = False, special: bool = True
) -> tuple[list[list[int]], NDArray[np.bool_]]:
    """Return the tokens of each text, at most `most`, and which texts were cut, (n,).

    Args:
        tokenizer: The tokenizer.
        texts: The texts, (n,).
        most: The most tokens, special ones included.
        answers: Tokenize as what the decoder writes, with an end token.
        special: Add the tokenizer's special tokens.
    """
    if not texts:
        return [], np.zeros(0, np.bool_)
    options = {"add_special_tokens": special, "verbose": False}
    name, end = "text_target" if answers else "text", end_tokens(tokenizer) if answers else []
    rows = tokenizer(**{name: list(texts)}, truncation=False, **options)["input_ids"]
    ended = [ids if set(end) <= set(ids) else [*ids, *end] for ids in rows]
    cut = np.array([len(ids) > most for ids in ended])
    for row in np.flatnonzero(cut).tolist():
        # Truncated by the tokenizer, which keeps its special tokens at the end, unless it has none.
        room = most - (len(ended[row]) - len(rows[row]))
        kept = tokenizer(**{name: texts[row]}, truncation=True, max_length=room, **options)["input_ids"]
        ended[row] = [*kept, *end[: most - room]]
    return ended, cut


def generate_answers(
    model: TaskModel, base: LoadedBase, inputs: Mapping[str, Sequence[Any]], settings: ModelSettings, tokens: int
) -> list[str]:
    """Generate answers of at most `tokens` tokens, always with the most probable token.

    `inputs` has "prompt" and optionally "input". The base's own settings of beams and lengths are not used: they
    are those of another kind of text.
    """
    rows, _ = _prompts(base, inputs, settings)
    encoder: Any = model.encoder
    device = next(encoder.parameters()).device
    batch = {
        "input_ids": pad_right(rows, base.processor.pad_token_id or 0),
        "attention_mask": pad_right([[1] * len(row) for row in rows]),
    }
    generated = encoder.generate(
        **{name: torch.from_numpy(array).to(device) for name, array in batch.items()},
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        min_length=0,
        no_repeat_ngram_size=0,
    )
    return [text.strip() for text in base.processor.batch_decode(generated, skip_special_tokens=True)]


def _build(
    encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings
) -> SequenceToSequenceModel:
    """Build the model around an encoder-decoder; it has no head, so `labels` and `settings` are not used."""
    model: Any = base.model
    return SequenceToSequenceModel(encoder, model.get_encoder().config.hidden_size)


TASK = Task(
    name="sequence-to-sequence",
    roles=QUESTIONS,
    load=load_encoder_decoder,
    encode=encode,
    build=_build,
    generate=generate_answers,
    code="sequence_to_sequence",
    output="answer",
)
