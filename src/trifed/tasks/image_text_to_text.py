"""Models that write about an image: image and prompt are read, the answer is learned. LLaVA and its like.

Liu et al., "Visual Instruction Tuning" (LLaVA), NeurIPS 2023, arXiv 2304.08485. Everything behind the image is
that of `causal_lm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from trifed.common.errors import ModelError
from trifed.config.settings import BaseDtype, ModelSettings
from trifed.data import IMAGES, QUESTIONS, Examples, open_image
from trifed.tasks.base import Batch, Task, TaskModel
from trifed.tasks.base_model import LoadedBase, Wanted, load_base
from trifed.tasks.causal_lm import EncodedTokens, LanguageModel, check_length
from trifed.tasks.generate import generate, on_the_left
from trifed.tasks.padding import padded
from trifed.tasks.prompts import CHAT, asked, question, rendered

IMAGE_AND_TEXT = Wanted(
    "image-text-to-text", "a model that writes about an image, such as LLaVA or Gemma 3",
    AutoProcessor, "processor_config.json, preprocessor_config.json and tokenizer files",
    AutoModelForImageTextToText,
)  # fmt: skip

Rows = dict[str, list[list[int]]]
"""Of each example one list of ints as long as its tokens, by name."""


@dataclass(frozen=True)
class Scene:
    """What stands before an answer. `rows`: what else a processor says of each token, such as its kind."""

    ids: list[int]
    rows: dict[str, list[int]]


@dataclass(frozen=True)
class EncodedScenes:
    """Tokens with the places of the image among them, and the images, (n,), as the bytes of their files.

    Images become pixels when a batch is made: of a large model they take a megabyte each.
    """

    tokens: EncodedTokens
    rows: Rows
    images: list[bytes]
    processor: Any

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> NDArray[np.int64]:
        """What the examples are, (n,)."""
        return self.tokens.labels

    @property
    def cut(self) -> int:
        """How many answers were longer than allowed."""
        return self.tokens.cut

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example, those of its image among them, (n,)."""
        return self.tokens.lengths

    def inputs(self, row: int) -> dict[str, set[Any]]:
        """The tokens of an example, equal ones once, and those of its image, each by its place in that image."""
        stands_for = self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        image, places = hash(self.images[row]), count()
        return {"": {(image, next(places)) if i == stands_for else i for i in self.tokens.ids[row]}}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """The given rows, padded on the right to the longest of them, and the pixels of their images."""
        more = {name: torch.from_numpy(padded([found[row] for row in rows])) for name, found in self.rows.items()}
        more |= pixels(self.processor, [self.images[row] for row in rows])
        return {**self.tokens.batch(rows, device), **{name: tensor.to(device) for name, tensor in more.items()}}


def pixels(processor: Any, images: Sequence[bytes]) -> dict[str, Tensor]:
    """What the model's own image processor makes of images, one behind the other."""
    pictures = [open_image(image).convert("RGB") for image in images]
    made = processor.image_processor(images=pictures, return_tensors="pt")
    left_out = getattr(processor, "unused_input_names", ())
    return {name: tensor for name, tensor in made.items() if name not in left_out and torch.is_tensor(tensor)}


def load_scene_model(name: str, dtype: BaseDtype = "float32") -> LoadedBase:
    """A frozen model of images and texts that writes, and its processor; raises ModelError where it is none."""
    return load_base(name, IMAGE_AND_TEXT, dtype)


def encode(base: LoadedBase, examples: Examples, settings: ModelSettings) -> EncodedScenes:
    """Tokenise once. What is too long is cut at the end of its answer.

    Raises:
        ModelError: the model reads fewer tokens than allowed; image and prompt leave no room for an answer; or a
            chat template is wanted and there is none.
    """
    check_length(base, settings)
    inputs, processor = examples.inputs, base.processor
    scenes = list(_scenes(processor, inputs, settings))
    answers = [_answer(processor, prompt, answer, settings) for prompt, answer in _pairs(inputs)]
    most = settings.max_length
    ids = [[*scene.ids, *answer][:most] for scene, answer in zip(scenes, answers, strict=True)]
    learned = [
        [0] * len(scene.ids) + [1] * (len(row) - len(scene.ids)) for scene, row in zip(scenes, ids, strict=True)
    ]
    cut = sum(len(scene.ids) + len(answer) > most for scene, answer in zip(scenes, answers, strict=True))
    rows = {
        name: [scene.rows[name] + [0] * sum(marks) for scene, marks in zip(scenes, learned, strict=True)]
        for name in (scenes[0].rows if scenes else ())
    }
    return EncodedScenes(EncodedTokens(ids, learned, examples.labels, cut), rows, list(inputs["image"]), processor)


def _pairs(inputs: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, str]]:
    """What is asked, with what it is about, and the answer."""
    contexts = inputs.get("input") or [""] * len(inputs["prompt"])
    for prompt, context, answer in zip(inputs["prompt"], contexts, inputs["answer"], strict=True):
        yield question(prompt, context), answer


def _scenes(processor: Any, inputs: Mapping[str, Sequence[Any]], settings: ModelSettings) -> Iterator[Scene]:
    """Image and prompt as the model reads them, an image as many tokens as its processor gives it."""
    contexts = inputs.get("input") or [""] * len(inputs["prompt"])
    for image, prompt, context in zip(inputs["image"], inputs["prompt"], contexts, strict=True):
        yield _scene(processor, image, _before(processor, prompt, context, settings), settings)


def _before(processor: Any, prompt: str, context: str, settings: ModelSettings) -> str:
    """The text before an answer, with the token that stands for the image in it."""
    if _chats(processor, settings):
        return rendered(processor, [_turn(question(prompt, context))], answer=True)
    written = asked(prompt, context, settings)
    return written if processor.image_token in written else f"{processor.image_token}\n{written}"


def _chats(processor: Any, settings: ModelSettings) -> bool:
    """The model's own chat template, where it has one and no other is named."""
    return settings.template == CHAT or (settings.template is None and processor.chat_template is not None)


def _turn(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}


def _scene(processor: Any, image: bytes, text: str, settings: ModelSettings) -> Scene:
    start = processor.tokenizer.bos_token
    made = processor(
        images=[open_image(image).convert("RGB")],
        text=text,
        # A template may have written the start token already.
        add_special_tokens=start is None or not text.startswith(start),
    )
    ids = [int(token) for token in np.asarray(made["input_ids"]).reshape(-1)]
    if ids and ids[-1] == processor.tokenizer.eos_token_id:
        ids = ids[:-1]
    if len(ids) >= settings.max_length:
        raise ModelError(
            f"model.max_length: {settings.max_length} leaves no room for an answer: an image and its prompt are "
            f"{len(ids)} tokens of this model; raise it, or shorten the prompts"
        )
    kinds = {name: np.asarray(made[name]).reshape(-1)[: len(ids)].tolist() for name in KINDS if name in made}
    return Scene(ids, kinds)


KINDS = ("token_type_ids", "mm_token_type_ids")
"""What processors say of each token, beside the mask."""


def _answer(processor: Any, asks: str, answer: str, settings: ModelSettings) -> list[int]:
    """The tokens of an answer, up to and with what ends it."""
    tokenizer = processor.tokenizer
    end: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if _chats(processor, settings):
        before = rendered(processor, [_turn(asks)], answer=True)
        says = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole = rendered(processor, [_turn(asks), says], answer=False)
        if whole.startswith(before):
            answer, end = whole.removeprefix(before), []
    ids: list[int] = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return ids + end


def write(
    model: TaskModel, base: LoadedBase, inputs: Mapping[str, Sequence[Any]], settings: ModelSettings, tokens: int
) -> list[str]:
    """What the model writes about each image: `inputs`: "image", "prompt" and perhaps "input"."""
    scenes = list(_scenes(base.processor, inputs, settings))
    more = {name: torch.tensor(on_the_left([scene.rows[name] for scene in scenes], 0)) for name in scenes[0].rows}
    more |= pixels(base.processor, inputs["image"])
    return generate(model.encoder, base.processor.tokenizer, [scene.ids for scene in scenes], tokens, more)


def _build(encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings) -> LanguageModel:
    return LanguageModel(encoder, base.model.config.get_text_config().hidden_size)


TASK = Task(
    name="image-text-to-text",
    metric="next-token accuracy",
    roles=(*IMAGES, *QUESTIONS),
    load=load_scene_model,
    encode=encode,
    build=_build,
    write=write,
    gives="answer",
)
