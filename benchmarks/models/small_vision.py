"""Pre-trains a small ViT on CIFAR-100, and with it a small model of images and texts.

    python benchmarks/models/small_vision.py DATA TO [--epochs 12] [--text demo]

DATA holds the data set as train.parquet and test.parquet (columns image, label). An image is to come nearest to
the sentence about its own class, as in CLIP; the sentences go through a text encoder that is frozen but for a
linear layer behind it. TO/towers becomes a VisionTextDualEncoder for `task = "image-text"`, TO/vit its vision
tower alone for `task = "image-classification"`, TO/trained.json what was reached. None of CIFAR-10's classes is
among CIFAR-100's. Small enough for a processor: 0.5 million parameters, on 32 × 32 pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, pad
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTImageProcessorPil,
    ViTModel,
)

from trifed.config.settings import TrainingSettings
from trifed.federation.training.device_placement import choose_precision
from trifed.tasks.text_classification import load_encoder

SENTENCE = "a photo of a {}."
SIDE, PATCH, WIDTH, COMMON = 32, 4, 128, 128
SHIFT = 4
BATCH, RATE, DECAY = 256, 2e-3, 0.05
SMOOTHING = 0.1
PRECISION = choose_precision(TrainingSettings(), torch.device("cpu"))
"""bfloat16 takes twelve times as long as float32 on a processor that cannot multiply it."""


def read(path: Path, classes: list[str]) -> tuple[Tensor, Tensor]:
    """Images, (n, 3, 32, 32) uint8, and labels, (n,)."""
    rows = pd.read_parquet(path)
    pictures = [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in rows["image"]]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
    return pixels.contiguous(), torch.tensor([classes.index(label) for label in rows["label"]])


def build(text: str) -> tuple[VisionTextDualEncoderModel, Any]:
    """Both towers, the vision tower fresh, and the tokenizer."""
    source = load_encoder(text).source
    shape = AutoConfig.for_model(
        "vit", image_size=SIDE, patch_size=PATCH, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=4, num_attention_heads=4,
    )  # fmt: skip
    words = AutoModel.from_pretrained(source)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(shape, words.config, projection_dim=COMMON)
    model = VisionTextDualEncoderModel(config=config, vision_model=ViTModel(shape), text_model=words)
    model.text_model.requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(source)


def seen(pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """As the model reads them, float32; with a generator moved about and mirrored at random."""
    if generator is not None:
        padded = pad(pixels, (SHIFT,) * 4)
        down, right = (int(torch.randint(2 * SHIFT + 1, (), generator=generator)) for _ in range(2))
        pixels = padded[..., down : down + SIDE, right : right + SIDE]
        mirrored = torch.rand(len(pixels), generator=generator) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    return pixels.float() / 127.5 - 1


class Trainer:
    """`sentences`: pooled outputs of the text tower for each class, (n_classes, width of the text tower)."""

    def __init__(self, model: VisionTextDualEncoderModel, sentences: Tensor) -> None:
        self.model = model
        self.sentences = sentences

    def logits(self, pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.bfloat16 == PRECISION):
            images = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        classes = normalize(self.model.text_projection(self.sentences), dim=-1)
        return normalize(images.float(), dim=-1) @ classes.T * self.model.logit_scale.exp()

    def accuracy(self, pixels: Tensor, labels: Tensor) -> float:
        self.model.eval()
        with torch.no_grad():
            hits = [self.logits(seen(pixels[i : i + 500])).argmax(1) for i in range(0, len(pixels), 500)]
        return float((torch.cat(hits) == labels).double().mean())

    def train(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], epochs: int) -> list[float]:
        """Accuracy on test after each epoch."""
        pixels, labels = train
        wanted = [param for param in self.model.parameters() if param.requires_grad]
        optimizer = torch.optim.AdamW(wanted, lr=RATE, weight_decay=DECAY)
        steps = epochs * (len(pixels) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
        generator, curve, began = torch.Generator().manual_seed(0), [], time.monotonic()
        for epoch in range(epochs):
            self.model.train()
            self.model.text_model.eval()
            for rows in torch.randperm(len(pixels), generator=generator).split(BATCH)[: len(pixels) // BATCH]:
                loss = cross_entropy(
                    self.logits(seen(pixels[rows], generator)), labels[rows], label_smoothing=SMOOTHING
                )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(wanted, 1.0)
                optimizer.step()
                schedule.step()
            curve.append(self.accuracy(*test))
            print(
                f"epoch {epoch + 1}/{epochs}  loss {float(loss.detach()):.2f}  test {curve[-1]:.3f}  "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
        return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of CIFAR-100")
    parser.add_argument("to", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--text", default="demo", help="the text encoder: a folder, a hub name, or demo")
    given = parser.parse_args()
    if not (given.data / "train.parquet").is_file():
        parser.error(f"{given.data}: no train.parquet there; it holds CIFAR-100, columns image and label")
    torch.manual_seed(0)
    classes = sorted(pd.read_parquet(given.data / "train.parquet", columns=["label"])["label"].unique())
    train, test = (read(given.data / f"{split}.parquet", classes) for split in ("train", "test"))
    model, tokenizer = build(given.text)
    sentences = [SENTENCE.format(name.replace("_", " ")) for name in classes]
    with torch.no_grad():
        pooled = model.text_model.eval()(**tokenizer(sentences, padding=True, return_tensors="pt")).pooler_output
    curve = Trainer(model, pooled).train(train, test, given.epochs)
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    for name, part in (("towers", model), ("vit", model.vision_model)):
        part.save_pretrained(given.to / name)
        processor.save_pretrained(given.to / name)
    tokenizer.save_pretrained(given.to / "towers")
    facts = {
        "data": "CIFAR-100",
        "epochs": given.epochs,
        "test accuracy by epoch": curve,
        "settings": {"batch": BATCH, "rate": RATE, "decay": DECAY, "smoothing": SMOOTHING, "sentence": SENTENCE},
        "precision": str(PRECISION).removeprefix("torch."),
        "trained": sum(param.numel() for param in model.parameters() if param.requires_grad),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (given.to / "trained.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
