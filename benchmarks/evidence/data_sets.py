"""Data sets of the comparison, and how each is split into clients.

Settings that differ from set to set, such as model, metric, rounds and seeds, are equal for all arms of a set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from client_rows import MAKERS

Json = dict[str, Any]
ROUNDS = 8
"""Rounds of one epoch at batch 32: about 100 steps of a client with 400 examples. *rising* in the tables says
whether that was the plateau."""
SEEDS = (0, 1)
"""The reported seeds. Validation data of the first one choose the learning rate."""


@dataclass(frozen=True)
class DataSet:
    """One data set and its split into clients.

    Attributes:
        folder: Folder under --data, with a train.parquet.
        clients: The split, as `[data.clients]`.
        settings: Further settings of its runs, nested.
        table: Makes the table from the rows and a seed, if it is not the file as it is.
        more: Further files under --data, whose rows come to those of the first file before `table`.
        question: What the set is for.
        model: Folder of the model under --models; if empty, the demo's encoder, MiniLM.
        metric: What decides and is reported: accuracy, or the loss of language models in nats a token.
        rounds: Rounds of a reported run. Learning rates are chosen in a quarter and in half of them.
        seeds: The reported seeds.
        rate_times: Factor of all arms' usual learning rates.
        all_layers: What the model calls the layers that BERT calls query, key, value and dense.
    """

    folder: str
    question: str
    clients: Json = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    table: str = ""
    more: tuple[str, ...] = ()
    model: str = ""
    metric: Literal["accuracy", "loss"] = "accuracy"
    rounds: int = ROUNDS
    seeds: tuple[int, ...] = SEEDS
    rate_times: float = 1.0
    all_layers: tuple[str, ...] = ()


DIRICHLET: Json = {"split": "dirichlet", "alpha": 0.5, "count": 10, "min_examples": 60, "max_examples": 800}
FEW: Json = {
    "data": {"test_fraction": 0.6},
    "training": {"batch_size": 8, "eval_batch_size": 32},
}
"""48 examples a client to train on, 16 to validate, 96 to test, as in the comparison of `benchmarks/methods`."""
FEW_ROWS: Json = {"min_examples": 40, "max_examples": 160}
LONG: Json = {"model": {"max_length": 128}}
PAIRS: Json = {"data": {"text_pair": "text_pair"}, **LONG}
LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MPNET: Json = {
    "model": "all-mpnet-base-v2",
    "all_layers": ("q", "k", "v", "o", "dense"),
    "seeds": (0,),
    "rounds": 4,
}
"""110 million parameters: a step takes about eight times as long as MiniLM's, so examples and rounds are fewer."""
SMALLER: Json = {**DIRICHLET, "max_examples": 160}
IMAGES: Json = {"table": "pictures", "more": ("cifar10/test.parquet",)}
VIT_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
VIT: Json = {**IMAGES, "model": "vit", "all_layers": VIT_LAYERS, "settings": {"task": "image-classification"}}
TOWERS: Json = {
    **VIT,
    "model": "towers",
    "settings": {"task": "image-text", "adapter": {"towers": "vision"}},
}
TASKS: Json = {"split": "column", "column": "client"}
ALL_IMAGES: Json = {"split": "dirichlet", "alpha": 0.5, "count": 10, "min_examples": 60}
STORIES: Json = {
    "model": "stories260K",
    "all_layers": LLAMA_LAYERS,
    "metric": "loss",
    "seeds": (0, 1, 2),
    "rate_times": 1.5,
}

SETS: Mapping[str, DataSet] = {
    "sst2": DataSet("glue_sst2", "two sentiments, label shares differ", DIRICHLET),
    "banking77": DataSet("banking77", "77 intents, label shares differ", DIRICHLET),
    "sentiment-domains": DataSet(
        "sentiment_domains",
        "three domains, three clients each, one meaning of the labels",
        {"split": "column", "column": "client", "max_examples": 800},
        table="by_domain",
    ),
    "agnews": DataSet("ag_news", "four topics, label shares differ", DIRICHLET, {"model": {"max_length": 96}}),
    "qnli": DataSet("glue_qnli", "pairs of texts, label shares differ", DIRICHLET, PAIRS),
    "sst2-random": DataSet("glue_sst2", "sst2, held out at random", DIRICHLET, {"data": {"holdout": "random"}}),
    "sst2-drift": DataSet(
        "glue_sst2",
        "sst2, label shares of the test part drift halfway to those of another client",
        {"split": "column", "column": "client", "max_examples": 800},
        {"data": {"holdout": "last"}},
        table="drifting",
    ),
    "qqp": DataSet("glue_qqp", "pairs of questions, label shares differ", DIRICHLET, PAIRS),
    "mnli": DataSet("glue_mnli", "pairs of texts, three labels, label shares differ", DIRICHLET, PAIRS),
    "clinc150-domain": DataSet(
        "clinc150",
        "one domain of intents each, no label in common",
        {"split": "column", "column": "domain", "max_examples": 800},
    ),
    "sst2-few": DataSet("glue_sst2", "sst2 with 48 examples a client", {**DIRICHLET, **FEW_ROWS}, FEW, rounds=16),
    "banking77-few": DataSet(
        "banking77", "banking77 with 48 examples a client", {**DIRICHLET, **FEW_ROWS}, FEW, rounds=16
    ),
    "clinc150-few": DataSet(
        "clinc150",
        "one domain of intents each, no label in common, 48 examples a client",
        {"split": "column", "column": "domain", **FEW_ROWS},
        FEW,
        rounds=16,
    ),
    "agnews-few": DataSet(
        "ag_news",
        "two of four topics each, 48 examples a client",
        {"split": "pathological", "labels_per_client": 2, "count": 10, **FEW_ROWS},
        FEW,
        rounds=16,
    ),
    "sst2-mpnet": DataSet("glue_sst2", "sst2 with an encoder of 110 million parameters", SMALLER, **MPNET),
    "qnli-mpnet": DataSet("glue_qnli", "qnli with an encoder of 110 million parameters", SMALLER, PAIRS, **MPNET),
    "cifar10-vit": DataSet("cifar10", "a small ViT, label shares differ", ALL_IMAGES, **VIT),
    "cifar10-vit-tasks": DataSet(
        "cifar10", "a small ViT, three tasks of classes, three clients each", TASKS, **VIT
    ),
    "cifar10-towers": DataSet("cifar10", "images and sentences, label shares differ", ALL_IMAGES, **TOWERS),
    "cifar10-towers-tasks": DataSet(
        "cifar10", "images and sentences, three tasks of classes, three clients each", TASKS, **TOWERS
    ),
    "shakespeare": DataSet(
        "shakespeare",
        "a small language model, ten speakers",
        TASKS,
        # Few and short texts: single ones in small batches.
        {"task": "causal-lm", "model": {"max_length": 128, "packing": False}, "training": {"batch_size": 8}},
        table="speakers",
        more=("shakespeare/test.parquet",),
        **STORIES,
    ),
    "instructions": DataSet(
        "instruct_reasoning",
        "a small language model, five kinds of instructions, two clients each",
        {**TASKS, "max_examples": 240},
        {
            "task": "causal-lm",
            "model": {"max_length": 256},
            "data": {"prompt": "instruction", "input": "input", "answer": "output"},
        },
        table="instructions",
        more=("instruct_reasoning/test.parquet", "alpaca_demo/train.parquet"),
        **STORIES,
    ),
}


def write_table(name: str, data: Path, seed: int, folder: Path) -> Path:
    """Return the file with a set's table for a seed; write it into `folder` if it is not the data set's own."""
    chosen = SETS[name]
    source = data / chosen.folder / "train.parquet"
    if not chosen.table:
        return source
    path = folder / f"{name}-{seed}.parquet"
    if not path.is_file():
        files = [source, *(data / file for file in chosen.more)]
        rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
        folder.mkdir(parents=True, exist_ok=True)
        MAKERS[chosen.table](rows, seed).to_parquet(path)
    return path
