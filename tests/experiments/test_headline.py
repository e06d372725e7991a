"""The first line of a result, on runs where sharing helps, does nothing, and harms."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from trifed import make_config, run
from trifed.reports.comparison.worth import worth_of_sharing
from trifed.reports.read import read_source

TOPICS = {
    "billing": ["invoice", "refund", "charge", "receipt", "payment"],
    "delivery": ["parcel", "courier", "address", "shipment", "doorstep"],
    "login": ["password", "account", "reset", "token", "browser"],
}
"""Words that the tiny encoder knows, by label."""
FILLER = [f"word{i:03d}" for i in range(170)]
CASES = {
    # Few examples a client, the same task everywhere: the others have what a client lacks.
    "gain": {"clients": 8, "rows": 16, "topic_words": 2, "rounds": 8},
    # Examples enough: every client is as good alone.
    "unclear": {"clients": 6, "rows": 90, "topic_words": 5, "rounds": 6},
    # The same texts have other labels at other clients: no common model fits.
    "loss": {"clients": 6, "rows": 60, "topic_words": 3, "rounds": 6, "other_labels": True},
}


def write_table(path, clients, rows, topic_words, other_labels):
    names, rng = list(TOPICS), np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "site"])
        for client in range(clients):
            for row in range(rows):
                topic = names[row % 3]
                words = [*rng.choice(TOPICS[topic], topic_words), *rng.choice(FILLER, rng.integers(2, 8))]
                rng.shuffle(words)
                label = names[(row + (client % 3 if other_labels else 0)) % 3]
                writer.writerow([" ".join(words), label, f"site-{client}"])
    return path


@pytest.mark.parametrize("kind", CASES)
def test_the_first_line_is_right(kind, toy_values, tmp_path):
    case = {"other_labels": False, **CASES[kind]}
    rounds = case.pop("rounds")
    data = {
        "source": str(write_table(tmp_path / "table.csv", **case)),
        "valid_fraction": 0.0,
        "test_fraction": 0.5,
    }
    values = toy_values(
        method="fedavg-lora",
        rounds=rounds,
        evaluate_every=rounds,
        baselines=None,
        data=data,
        training={"epochs": 3, "batch_size": 16},
        privacy={"few_tokens": "allow"},
    )
    source = read_source(run(make_config(values), tmp_path / "run").path)
    (partition,) = source.study.results.values()
    assert worth_of_sharing(partition).kind == kind
