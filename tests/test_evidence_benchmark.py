"""The comparison at equal bits: every arm is a valid run, and the tables follow from kept answers."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from trifed import make_config

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "evidence"))
import client_rows
import design
import tables

import evidence


@pytest.mark.parametrize("name", sorted(design.SETS))
def test_every_arm_is_a_valid_run_and_all_send_one_bit(name):
    for arm, settings in design.ALL_ARMS.items():
        config = make_config(evidence.configuration(name, settings, 0, 0.01, "rows.parquet"))
        assert config.wire.bits == (32 if arm == "32 bits" else 1), arm
        assert config.rounds == design.SETS[name].rounds and config.metric == design.SETS[name].metric
        assert config.training.batch_size == (8 if name == "shakespeare" else 32)


def test_rivals_have_the_client_parts_of_the_default():
    own = make_config(evidence.configuration("sst2", design.ARMS["own-prior"], 0, 0.01, "rows.parquet"))
    for arm in ("fedavg-lora", "ce-lora", "fedsa-lora", "fed-xs", "rolora"):
        other = make_config(evidence.configuration("sst2", design.ALL_ARMS[arm], 0, 0.01, "rows.parquet"))
        assert other.personalization == own.personalization


def test_label_shares_drift_halfway_to_those_of_another_client():
    rows = pd.DataFrame({"text": [str(n) for n in range(12000)], "label": np.arange(12000) % 2})
    made = client_rows.drifting(rows, seed=1)
    assert not made["text"].duplicated().any()
    shares = {}
    for client, part in made.groupby("client", sort=True):
        assert len(part) == 800
        shares[client] = part["label"][:480].mean(), part["label"][480:].mean()
    early = [share for share, _ in shares.values()]
    for place, (_, late) in enumerate(shares.values()):
        assert late == pytest.approx((early[place] + early[place - 1]) / 2, abs=0.08)


def test_domains_are_dealt_out_evenly():
    rows = pd.DataFrame({"text": list("abcdefg"), "domain": ["x"] * 4 + ["y"] * 3, "label": 0})
    assert sorted(client_rows.by_domain(rows, 0)["client"]) == ["x-0", "x-0", "x-1", "x-2", "y-0", "y-1", "y-2"]


def record(arm, seed, right, valid, curve):
    bits = {f"c{n}": f"{len(r)}:{np.packbits(np.array(r, bool)).tobytes().hex()}" for n, r in enumerate(right)}
    accuracy = [float(np.mean(r)) for r in right]
    return {
        "set": "sst2", "arm": arm, "seed": seed, "rate": 0.01, "rounds": 2, "valid": valid,
        "mean": float(np.mean(accuracy)), "worst": min(accuracy), "best": max(accuracy),
        "bytes": {"up": 8000, "summaries": 0, "opening_up": 0, "total": curve[-1][2]},
        "curve": [{"round": n, "mean": mean, "bytes": sent} for n, mean, sent in curve],
        "split": "same", "answers": bits,
    }  # fmt: skip


def test_tables_follow_from_the_answers(tmp_path):
    """Two clients of four rows: 7 of 8 right less 4 of 8 is 37.5 points; validation data choose the rival."""
    most, half = [[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 1, 0, 0], [1, 1, 0, 0]]
    runs = [
        record("own-prior", 0, most, 0.9, [(1, 0.7, 500), (2, 0.875, 1000)]),
        record("fedavg-lora", 0, half, 0.8, [(1, 0.4, 900), (2, 0.5, 1800)]),
        record("fed-xs", 0, most, 0.7, [(1, 0.9, 2000), (2, 0.875, 4000)]),
    ]
    (tmp_path / "sst2.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    held = tables.Held("sst2", tmp_path)
    assert held.best_rival() == "fedavg-lora"
    mean, (low, high) = held.difference("own-prior", "fedavg-lora")
    assert mean == pytest.approx(0.375) and low <= mean <= high
    assert held.at_bytes("fedavg-lora") == pytest.approx(0.4)
    assert held.at_bytes("fed-xs") is None
    lines, _ = tables.document(tmp_path)
    row = next(line for line in lines if line.startswith("| `fedavg-lora`"))
    assert "50.0" in row and "-37.5" in row and "2.0" in row
    runs[1]["split"] = "other"
    (tmp_path / "sst2.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    with pytest.raises(SystemExit, match="different splits"):
        tables.Held("sst2", tmp_path).difference("own-prior", "fedavg-lora")
