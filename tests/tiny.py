"""A tiny base model, a small table, and settings that use both: nothing is downloaded, nothing takes long."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from trifed.data import demo_corpus_path

TOPICS = {
    "billing": ["invoice", "refund", "charge", "receipt", "payment"],
    "delivery": ["parcel", "courier", "address", "shipment", "doorstep"],
    "login": ["password", "account", "reset", "token", "browser"],
}
FILLER = [f"word{i:03d}" for i in range(170)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SITES = ["amber", "basil", "coral"]
REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT (2 layers, hidden 32, 4 heads, 190 words) and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-encoder")
    words = SPECIAL + [word for topic in TOPICS.values() for word in topic] + FILLER
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_reader(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a BERT as small as `tiny_encoder`, whose tokenizer has the words of the examples' texts."""
    folder = tmp_path_factory.mktemp("tiny-reader")
    sources = (demo_corpus_path(), REPOSITORY / "examples" / "hospitals.py")
    texts = "".join(path.read_text(encoding="utf-8") for path in sources)
    known = json.loads((tiny_encoder / "tokenizer.json").read_text(encoding="utf-8"))
    words = known["model"]["vocab"]
    for word in dict.fromkeys(re.findall(r"\w+|[^\w\s]+", texts)):
        words.setdefault(word, len(words))
    shutil.copytree(tiny_encoder, folder, dirs_exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(known), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig.from_pretrained(tiny_encoder, vocab_size=len(words))
        BertModel(config).save_pretrained(folder)
    return str(folder)


def write_toy_table(path: Path, rows_a_site: int = 40, seed: int = 0) -> Path:
    """A CSV `text,label,site`: each text has two words of its topic among filler; sites favour one topic each."""
    rng = np.random.default_rng(seed)
    names = list(TOPICS)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "site"])
        for place, site in enumerate(SITES):
            share = np.full(len(names), 0.25)
            share[place] = 0.5
            for row in range(rows_a_site):
                # The first rows go through the labels, so that every site has several of each.
                label = names[row % 3] if row < 9 else names[rng.choice(3, p=share)]
                words = [*rng.choice(TOPICS[label], 2), *rng.choice(FILLER, rng.integers(3, 15))]
                rng.shuffle(words)
                writer.writerow([" ".join(words), label, site])
    return path


@pytest.fixture(scope="session")
def toy_rows() -> Callable[..., Path]:
    """`toy_rows(path, rows_a_site=20, seed=1)`: other rows of the same kind."""
    return write_toy_table


@pytest.fixture(scope="session")
def toy_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 rows of three sites and three labels; see `write_toy_table`."""
    return write_toy_table(tmp_path_factory.mktemp("toy-table") / "toy.csv")


@pytest.fixture(scope="session")
def write_site_tables(toy_table: Path) -> Callable[[Path], Path]:
    """`write_site_tables(folder)`: a file `SITE.csv` for each of `SITES`, with the rows of that site alone."""

    def write(folder: Path) -> Path:
        with toy_table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for site in SITES:
            with (folder / f"{site}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, ["text", "label", "site"])
                writer.writeheader()
                writer.writerows(row for row in rows if row["site"] == site)
        return folder

    return write


@pytest.fixture
def site_tables(write_site_tables: Callable[[Path], Path], tmp_path: Path) -> Path:
    """The test's folder, with a file `SITE.csv` for each of `SITES`."""
    return write_site_tables(tmp_path)


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with nested `changes` laid over them."""
    result = dict(values)
    for name, change in changes.items():
        inner = result.get(name)
        result[name] = merge(inner, change) if isinstance(inner, dict) and isinstance(change, dict) else change
    return result


@pytest.fixture(scope="session")
def toy_values(tiny_encoder: Path, toy_table: Path) -> Callable[..., dict[str, Any]]:
    """`toy_values(seed=1, training={"epochs": 2})`: nested values for `make_config`, three short rounds."""

    def values(**changes: Any) -> dict[str, Any]:
        small = {
            "name": "toy",
            "rounds": 3,
            "controls": False,
            "baselines": [],
            "baseline_rates": [1e-2],
            "model": {"name": str(tiny_encoder), "max_length": 32},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"source": str(toy_table), "clients": {"split": "column", "column": "site"}},
            "training": {
                "batch_size": 8,
                "eval_batch_size": 16,
                "learning_rate": 1e-2,
                "precision": "fp32",
                "device": "cpu",
            },
        }
        return merge(small, changes)

    return values
