"""Tiny vision models and tables of images that every test of tasks may use."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, ViTImageProcessor

SIDE = 16
HUES = {"amber": (200, 150, 40), "green": (60, 190, 70), "violet": (150, 60, 200)}
SHAPES: dict[str, dict[str, Any]] = {
    "vit": {"image_size": SIDE, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4},
    "deit": {"image_size": SIDE, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4},
    "dinov2": {"image_size": SIDE, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4},
    "swin": {
        "image_size": SIDE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
        "window_size": 2,
    },
    "convnext": {"hidden_sizes": [8, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
}  # fmt: skip


def as_file(color: tuple[int, int, int], rng: np.random.Generator, kind: str = "PNG") -> bytes:
    """A noisy image of one color, of no particular shape."""
    height, width = rng.integers(SIDE, 2 * SIDE, 2)
    pixels = rng.normal(color, 60, (height, width, 3)).clip(0, 255).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, kind)
    return made.getvalue()


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_vision("swin")`: a folder with a random model of that architecture and its image processor."""
    known: dict[str, Path] = {}

    def make(kind: str = "vit") -> Path:
        if kind not in known:
            folder = known[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
            sizes = {} if kind in ("swin", "convnext") else {"hidden_size": 32, "intermediate_size": 64}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                AutoModel.from_config(AutoConfig.for_model(kind, **SHAPES[kind], **sizes)).save_pretrained(folder)
            size = {"height": SIDE, "width": SIDE}
            ViTImageProcessor(size=size, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(
                folder
            )
        return known[kind]

    return make


@pytest.fixture(scope="session")
def images_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file `image,label,site` with 72 images of three colors at two sites."""
    rng = np.random.default_rng(0)
    rows = [
        {"image": {"bytes": as_file(HUES[label], rng), "path": None}, "label": label, "site": site}
        for site in ("north", "south")
        for label in list(HUES) * 12
    ]
    path = tmp_path_factory.mktemp("images") / "images.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def image_values(tiny_vision: Callable[[str], Path], images_table: Path) -> dict[str, Any]:
    """Values for `make_config`: two short rounds on the tiny ViT."""
    return {
        "task": "image-classification",
        "rounds": 2,
        "model": {"name": str(tiny_vision("vit"))},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"source": str(images_table), "clients": {"split": "column", "column": "site"}},
        "training": {"batch_size": 8, "learning_rate": 1e-2, "precision": "fp32", "device": "cpu", "epochs": 3},
    }


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder with one subfolder a label, 6 JPEG files each."""
    rng = np.random.default_rng(1)
    for label, color in HUES.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "photos" / label / f"{number}.jpg").write_bytes(as_file(color, rng, "JPEG"))
    return tmp_path / "photos"


@pytest.fixture
def paths_table(image_folder: Path) -> Path:
    """A CSV beside the folder that names its files, `file,label`."""
    path = image_folder.parent / "photos.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        writer.writerows([f"photos/{label}/{number}.jpg", label] for label in HUES for number in range(6))
    return path
