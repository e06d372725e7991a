"""Image classification: a frozen vision model with an adapter, and a linear head on its pooled features."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from trifed.common.errors import ModelError
from trifed.config.settings import Augment, ModelSettings, Pooling
from trifed.data import IMAGES, Examples, as_png, open_rgb
from trifed.tasks.base import Batch, HeadedModel, Task
from trifed.tasks.base_model import LoadedBase, load_base

CHUNK = 64
SHIFT = 8
"""Augmentation moves images by up to 1/SHIFT of their side."""


@dataclass(frozen=True)
class EncodedImages:
    """Images at the model's size; the model's input is (`scale` · pixels − `mean`) / `std`.

    Attributes:
        pixels: (n, 3, height, width), uint8.
        labels: Class of each image, (n,).
        scale: Factor on the pixels.
        mean: Mean of each channel, (3,).
        std: Standard deviation of each channel, (3,).
        cut: Number of truncated examples, always 0.
        patches: Number of patches per image in the layer that has the fewest.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    scale: float
    mean: Tensor
    std: Tensor
    cut: int = 0
    patches: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of patches of each image, (n,)."""
        return np.full(len(self), self.patches, np.int64)

    def inputs(self, row: int) -> dict[str, set[Hashable]]:
        """Return an image's patches as (image, position), equal only for equal images."""
        image = hash(self.pixels[row].tobytes())
        return {"": {(image, patch) for patch in range(self.patches)}}

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Return the given rows on `device`, normalized as in the model's pre-training."""
        pixels = torch.from_numpy(self.pixels[rows]).to(device).float() * self.scale
        mean, std = (part.to(device)[:, None, None] for part in (self.mean, self.std))
        return {"pixel_values": (pixels - mean) / std, "labels": torch.from_numpy(self.labels[rows]).to(device)}


def encode_images(base: LoadedBase, examples: Examples, settings: ModelSettings | None = None) -> EncodedImages:
    """Decode images and resize them to the model's size with its own image processor.

    Args:
        base: A vision model, or a model with a vision tower.
        examples: Examples with the role "image".
        settings: Not used.

    Raises:
        ModelError: The processor's size is not the model's.
    """
    processor = getattr(base.processor, "image_processor", base.processor)
    config = getattr(base.model.config, "vision_config", base.model.config)
    images = examples.inputs["image"]
    chunks = [_pixels(processor, images[first : first + CHUNK]) for first in range(0, len(images), CHUNK)]
    pixels = np.concatenate(chunks) if chunks else np.zeros((0, 3, 1, 1), np.uint8)
    _check_size(config, pixels)
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    shift, spread = (processor.image_mean, processor.image_std) if processor.do_normalize else (0, 1)
    mean, std = (torch.tensor(np.broadcast_to(value, 3), dtype=torch.float32) for value in (shift, spread))
    return EncodedImages(pixels, examples.labels, scale, mean, std, patches=_patches(config, pixels))


def _patches(config: Any, pixels: NDArray[np.uint8]) -> int:
    """Return the number of patches in the layer that has the fewest; 1 if the configuration has no patch size."""
    side = getattr(config, "patch_size", None)
    if not isinstance(side, int):
        return 1
    # Each stage of a model with stages, such as Swin, halves both sides of its input.
    stages = len(config.depths) if hasattr(config, "depths") else 1
    height, width = (int(size) // (side << (stages - 1)) for size in pixels.shape[2:])
    return max(1, height * width)


def _pixels(processor: Any, encoded: list[bytes]) -> NDArray[np.uint8]:
    """Decode and resize image files to (n, 3, height, width)."""
    pictures = [open_rgb(image) for image in encoded]
    resized = processor(pictures, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"]
    return np.asarray(resized).round().clip(0, 255).astype(np.uint8)


def _check_size(config: Any, pixels: NDArray[np.uint8]) -> None:
    size = getattr(config, "image_size", None)
    checked = isinstance(size, int) and len(pixels) and config.model_type not in ANY_SIZE
    if checked and pixels.shape[2:] != (size, size):
        raise ModelError(
            f"model.name: got {pixels.shape[2]} × {pixels.shape[3]} pixels from its image processor, expected "
            f"{size} × {size}; correct 'size' in its preprocessor_config.json"
        )


ANY_SIZE = ("convnext", "convnextv2", "swin", "swinv2", "dinov2")


class ImageClassifier(HeadedModel):
    """A PEFT-wrapped vision model and a linear head on its pooled patches."""

    def __init__(self, encoder: nn.Module, hidden: int, n_labels: int, pooling: Pooling, augment: Augment) -> None:
        super().__init__(encoder, hidden, n_labels, pooling)
        self.augment = augment

    def augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with images changed as `model.augment` says."""
        return augmented(batch, self.augment, generator)

    def features(self, batch: Batch) -> Tensor:
        """Return pooled features, (n, hidden), float32."""
        output = self.encoder(pixel_values=batch["pixel_values"])
        if self.pooling == "pooler":
            return torch.flatten(output.pooler_output.float(), 1)
        hidden: Tensor = output.last_hidden_state.float()
        if hidden.dim() == 4:  # (n, hidden, height, width) of a convolutional model, without a first token
            return hidden.mean((2, 3))
        return hidden[:, 0] if self.pooling == "cls" else hidden.mean(1)


def augmented(batch: Batch, kind: Augment, generator: torch.Generator) -> Batch:
    """Mirror half of a batch's images and, for "flip-crop", move all by up to an eighth with repeated edges.

    Args:
        batch: Its images are `pixel_values`, (n, 3, height, width).
        kind: "none" returns `batch`.
        generator: Source of the random numbers, on the CPU.
    """
    if kind == "none":
        return batch
    pixels = batch["pixel_values"]
    mirrored = torch.rand(len(pixels), 1, 1, 1, generator=generator).to(pixels.device) < 0.5
    pixels = torch.where(mirrored, pixels.flip(3), pixels)
    return {**batch, "pixel_values": pixels if kind == "flip" else _moved(pixels, generator)}


def _moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    n, _, height, width = pixels.shape
    pad = max(1, min(height, width) // SHIFT)
    padded = nn.functional.pad(pixels, (pad,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator).tolist()
    return torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners, strict=True)]
    )


def _build(
    encoder: nn.Module, base: LoadedBase, labels: Sequence[str], settings: ModelSettings
) -> ImageClassifier:
    config = base.model.config
    if settings.pooling == "last":
        raise ModelError("model.pooling: got 'last', but an image has no last token; set it to 'mean' or 'cls'")
    hidden = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]
    return ImageClassifier(encoder, hidden, len(labels), settings.pooling, settings.augment)


def _probe() -> tuple[bytes, ...]:
    """Return two images of noise with different shapes, as PNG."""
    rng = np.random.default_rng(0)
    return tuple(
        as_png(Image.fromarray(rng.integers(0, 256, shape, np.uint8))) for shape in ((40, 64, 3), (64, 48, 3))
    )


TASK = Task(
    name="image-classification",
    roles=IMAGES,
    load=partial(
        load_base,
        task="image-classification",
        description="a vision model, such as ViT, DeiT, Swin, DINOv2 or ConvNeXt",
        processor=AutoImageProcessor,
        files="preprocessor_config.json",
    ),
    encode=encode_images,
    build=_build,
    code="classifier",
    native_class=AutoModelForImageClassification,
    probe=_probe(),
)
