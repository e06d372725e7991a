"""Tiny vision and language models, and tables of images, that every test of tasks may use."""

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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTImageProcessor,
)

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
def run_card(plain_python: Callable[..., str]) -> Callable[[Path, str], str]:
    """`run_card(folder, "answer(...)")`: what that is after the code of a folder's model card, as printed."""

    def ask(folder: Path, question: str) -> str:
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        return plain_python(f"{code[: code.index('print(')]}\nprint({question})\n", folder)

    return ask


@pytest.fixture(scope="session")
def paint() -> Callable[..., bytes]:
    """`paint("green", 3)`: the file of a noisy image of that hue, its noise and shape from the seed."""
    return lambda hue, seed=0: as_file(HUES[hue], np.random.default_rng(seed))


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
        "baselines": [],
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


LANGUAGE: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 64},
    "mistral": {"num_key_value_heads": 2, "intermediate_size": 64},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 64},
    "gemma": {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8},
    "phi": {"intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
SCENE_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% for part in m.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_language("gpt2", chat=True)`: a folder with a random language model that reads bytes."""
    known: dict[tuple[str, bool], Path] = {}

    def make(kind: str = "llama", chat: bool = False) -> Path:
        if (kind, chat) not in known:
            folder = known[kind, chat] = tmp_path_factory.mktemp(f"tiny-{kind}")
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            words = {word: place for place, word in enumerate(["<s>", "</s>", *alphabet])}
            tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", words["<s>"])]
            )
            fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
            if chat:
                fast.chat_template = CHAT_TEMPLATE
            fast.save_pretrained(folder)
            sizes = {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 128,
            }
            shape = {**({} if kind == "gpt2" else sizes), **LANGUAGE[kind], "initializer_range": 0.2}
            ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, "vocab_size": len(words)}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                config = AutoConfig.for_model(kind, **shape, **ends)
                AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return known[kind, chat]

    return make


PAIRS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 96, "decoder_start_token_id": 1, "bos_token_id": 2, "init_std": 0.2,
        "forced_eos_token_id": None,
    },
}  # fmt: skip
PAIRS["mt5"] = {**PAIRS["t5"], "feed_forward_proj": "gated-gelu"}
PAIRS["pegasus"] = {**PAIRS["bart"], "decoder_start_token_id": 0}


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_pairs("bart")`: a folder with a random encoder-decoder that reads bytes; "t5" has no start token."""
    known: dict[str, Path] = {}

    def make(kind: str = "t5") -> Path:
        if kind not in known:
            folder = known[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            words = {word: place for place, word in enumerate(["<pad>", "</s>", "<s>", *alphabet])}
            tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>" if kind == "bart" else "$A </s>",
                special_tokens=[("<s>", words["<s>"]), ("</s>", words["</s>"])],
            )
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
            ).save_pretrained(folder)
            ends = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": len(words)}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                config = AutoConfig.for_model(kind, **{**ends, **PAIRS[kind]})
                AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
        return known[kind]

    return make


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_scenes(chat=True)`: a folder with a random LLaVA that reads bytes, and four tokens an image."""
    known: dict[bool, Path] = {}

    def make(chat: bool = False) -> Path:
        if chat not in known:
            folder = known[chat] = tmp_path_factory.mktemp("tiny-llava")
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            words = {word: place for place, word in enumerate(["<s>", "</s>", "<image>", *alphabet])}
            tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", words["<s>"])]
            )
            LlavaProcessor(
                image_processor=CLIPImageProcessorPil(
                    size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
                ),
                tokenizer=PreTrainedTokenizerFast(
                    tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", extra_special_tokens=["<image>"]
                ),
                patch_size=SIDE // 2, vision_feature_select_strategy="default", num_additional_image_tokens=1,
                chat_template=SCENE_TEMPLATE if chat else None,
            ).save_pretrained(folder)  # fmt: skip
            shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
            config = LlavaConfig(
                vision_config=AutoConfig.for_model(
                    "clip_vision_model", **shape, image_size=SIDE, patch_size=SIDE // 2, projection_dim=16
                ),
                text_config=AutoConfig.for_model(
                    "llama", **shape, num_key_value_heads=2, vocab_size=len(words), max_position_embeddings=128,
                    bos_token_id=0, eos_token_id=1, pad_token_id=None, initializer_range=0.2,
                ),
                image_token_index=2,
                image_seq_length=4,
            )  # fmt: skip
            with torch.random.fork_rng():
                torch.manual_seed(0)
                AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
        return known[chat]

    return make


SENTENCES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VIEWS = {**SENTENCES, "hidden_size": 32, "image_size": SIDE, "patch_size": 8}


@pytest.fixture(scope="session")
def tiny_towers(
    tmp_path_factory: pytest.TempPathFactory, tiny_vision: Callable[[str], Path]
) -> Callable[..., Path]:
    """`tiny_towers("siglip")`: a folder with a random model of images and texts, its towers of unlike sizes."""
    known: dict[str, Path] = {}

    def make(kind: str = "clip") -> Path:
        if kind not in known:
            folder = known[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
            words = ["[PAD]", "[UNK]", "[START]", "[END]", "a", "photo", "of", *HUES, "thing", "."]
            tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[START] $A [END]", special_tokens=[("[START]", 2), ("[END]", 3)]
            )
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
            ).save_pretrained(folder)
            AutoImageProcessor.from_pretrained(tiny_vision("vit")).save_pretrained(folder)
            texts = {**SENTENCES, "vocab_size": len(words), "max_position_embeddings": 16, "pad_token_id": 0}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                _towers(kind, texts).save_pretrained(folder)
        return known[kind]

    return make


def _towers(kind: str, texts: dict[str, Any]) -> Any:
    if kind == "clip":
        ends = {"bos_token_id": 2, "eos_token_id": 3}
        config = AutoConfig.for_model(
            "clip", text_config={**texts, **ends}, vision_config=VIEWS, projection_dim=24
        )
        return AutoModel.from_config(config)
    if kind == "siglip":
        both = {**texts, "projection_size": 32, "bos_token_id": 2, "eos_token_id": 3}
        return AutoModel.from_config(AutoConfig.for_model("siglip", text_config=both, vision_config=VIEWS))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        AutoConfig.for_model("vit", **VIEWS), AutoConfig.for_model("bert", **texts), projection_dim=24
    )
    return VisionTextDualEncoderModel(config=config)
