"""Instruction tuning of vision-language models such as LLaVA on answers to an image and a prompt.

Liu et al., "Visual Instruction Tuning" (LLaVA), NeurIPS 2023, arXiv 2304.08485. The model and its loss are those
of `causal_lm`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from trifed.common.errors import ModelError
from trifed.config.settings import ModelSettings
from trifed.data import IMAGES, QUESTIONS, Examples, open_rgb
from trifed.tasks.base import Batch, Task, TaskModel
from trifed.tasks.base_model import LoadedBase, load_base
from trifed.tasks.causal_lm import build_language_model, check_length, generate
from trifed.tasks.chat import mark_for
from trifed.tasks.prompts import (
    CHAT,
    chat_question,
    end_tokens,
    format_prompt,
    prompt_rows,
    render_chat,
    without_end,
)
from trifed.tasks.tokens import EncodedTokens, check_vocabulary, pad_left

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Values per token that processors return in addition to ids and mask."""

ImagePrompt = dict[str, list[int]]
"""The tokens before an answer: "input_ids", and the processor's other values of each token by name."""


@dataclass(frozen=True)
class EncodedImagePrompts(EncodedTokens):
    """Token sequences that include image tokens, and the images.

    Attributes:
        images: Bytes of each example's image file, (n,). Each batch decodes its own images, because the pixels of
            one image may take a megabyte.
        processor: The base model's processor.
    """

    images: list[bytes] = field(kw_only=True)
    processor: Any = field(kw_only=True)

    def inputs(self, row: int) -> dict[str, set[Hashable]]:
        """Return the distinct tokens of an example, with each image token as (image, position in the image)."""
        image_token = self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        image, positions = hash(self.images[row]), count()
        return {"": {(image, next(positions)) if i == image_token else i for i in self.ids[row]}}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Return the given rows on `device`, padded on the right, and the pixels of their images."""
        images = pixels(self.processor, [self.images[row] for row in rows])
        return {**super().batch(rows, device), **{name: tensor.to(device) for name, tensor in images.items()}}


def pixels(processor: Any, images: Sequence[bytes]) -> dict[str, Tensor]:
    """Convert image files to the model's inputs with its own image processor."""
    processed = processor.image_processor(images=[open_rgb(image) for image in images], return_tensors="pt")
    unused = getattr(processor, "unused_input_names", ())
    return {name: tensor for name, tensor in processed.items() if name not in unused and torch.is_tensor(tensor)}


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedImagePrompts:
    """Tokenize images with prompts and answers; long examples are truncated at the end of the answer.

    Raises:
        ModelError: `model.max_length` exceeds the model's limit, image and prompt leave no room for an answer, its
            tokenizer has more tokens than the model, or a chat template is missing or refuses a conversation.
    """
    check_length(base, settings)
    inputs, processor, most = examples.inputs, base.processor, settings.max_length
    answers = [
        _answer_ids(processor, chat_question(prompt, context), answer, settings)
        for prompt, context, answer in prompt_rows(inputs, "answer")
    ]
    pairs = list(zip(_image_prompts(processor, inputs, settings), answers, strict=True))
    names = [name for name in TOKEN_TYPES if pairs and name in pairs[0][0]]
    check_vocabulary(base.model, ([*prompt["input_ids"], *answer] for prompt, answer in pairs))
    return EncodedImagePrompts(
        [[*prompt["input_ids"], *answer][:most] for prompt, answer in pairs],
        examples.labels,
        cut=sum(len(prompt["input_ids"]) + len(answer) > most for prompt, answer in pairs),
        more={
            "learned": [([0] * len(prompt["input_ids"]) + [1] * len(answer))[:most] for prompt, answer in pairs],
            **{name: [(prompt[name] + [0] * len(answer))[:most] for prompt, answer in pairs] for name in names},
        },
        images=list(inputs["image"]),
        processor=processor,
    )


def _image_prompts(
    processor: Any, inputs: Mapping[str, Sequence[Any]], settings: ModelSettings
) -> list[ImagePrompt]:
    """Tokenize each image with its prompt."""
    return [
        _image_prompt(processor, image, _text_before_answer(processor, prompt, context, settings), settings)
        for prompt, context, image in prompt_rows(inputs, "image")
    ]


def _text_before_answer(processor: Any, prompt: str, context: str, settings: ModelSettings) -> str:
    """Return the text before an answer, which contains the image token."""
    if _uses_chat_template(processor, settings):
        return render_chat(processor, [_user_message(chat_question(prompt, context))], answer=True)
    text = format_prompt(prompt, context, settings)
    return text if processor.image_token in text else f"{processor.image_token}\n{text}"


def _uses_chat_template(processor: Any, settings: ModelSettings) -> bool:
    """Return True if the settings choose the chat template, or choose no template and the model has one."""
    return settings.template == CHAT or (settings.template is None and processor.chat_template is not None)


def _user_message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def _assistant_message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _image_prompt(processor: Any, image: bytes, text: str, settings: ModelSettings) -> ImagePrompt:
    """Tokenize an image and the text before its answer."""
    start = processor.tokenizer.bos_token
    encoded = processor(
        images=[open_rgb(image)],
        text=text,
        # A chat template may include the start token already.
        add_special_tokens=start is None or not text.startswith(start),
    )
    values = {
        name: np.asarray(encoded[name]).reshape(-1).tolist()
        for name in ("input_ids", *TOKEN_TYPES)
        if name in encoded
    }
    ids = without_end(values["input_ids"], processor.tokenizer)
    if len(ids) >= settings.max_length:
        raise ModelError(
            f"model.max_length: got {settings.max_length}, which leaves no room for an answer, because an image "
            f"and its prompt have {len(ids)} tokens; raise it, or shorten the prompts"
        )
    return {name: value[: len(ids)] for name, value in values.items()}


def _answer_ids(processor: Any, question: str, answer: str, settings: ModelSettings) -> list[int]:
    """Tokenize an answer, with the end token or the chat template's end of a message."""
    end = end_tokens(processor.tokenizer)
    if _uses_chat_template(processor, settings):
        asked = [_user_message(question)]
        prompt = render_chat(processor, asked, answer=True)
        mark = mark_for([*asked, _assistant_message(answer)])
        whole, marked = (render_chat(processor, [*asked, _assistant_message(text)]) for text in (answer, mark))
        # A template may ask for an answer otherwise than it writes one; the end of the turn is the same.
        closing = marked.partition(mark)[2]
        answer, end = (whole.removeprefix(prompt) if whole.startswith(prompt) else answer + closing), []
    return [*processor.tokenizer(answer, add_special_tokens=False)["input_ids"], *end]


def generate_answers(
    model: TaskModel, base: LoadedBase, inputs: Mapping[str, Sequence[Any]], settings: ModelSettings, tokens: int
) -> list[str]:
    """Generate answers of at most `tokens` tokens; `inputs` has "image", "prompt" and optionally "input"."""
    prompts = _image_prompts(base.processor, inputs, settings)
    names = [name for name in TOKEN_TYPES if name in prompts[0]]
    more = {name: pad_left([prompt[name] for prompt in prompts], 0) for name in names}
    more |= pixels(base.processor, inputs["image"])
    rows = [prompt["input_ids"] for prompt in prompts]
    return generate(model.encoder, base.processor.tokenizer, rows, tokens, more)


TASK = Task(
    name="image-text-to-text",
    roles=(*IMAGES, *QUESTIONS),
    load=partial(
        load_base,
        task="image-text-to-text",
        description="a model that writes about an image, such as LLaVA or Gemma 3",
        processor=AutoProcessor,
        files="processor_config.json, preprocessor_config.json and tokenizer files",
        model=AutoModelForImageTextToText,
    ),
    encode=encode,
    build=build_language_model,
    generate=generate_answers,
    code="language_model",
    output="answer",
)
