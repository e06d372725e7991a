"""The comparison at equal bits: every arm is a valid run, and the tables follow from kept answers."""

import json
import string
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from trifed import make_config

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "evidence"))
import client_rows
import data_sets
import design
import records
import tables

import evidence

REPOSITORY = Path(__file__).resolve().parents[1]
STORIES = REPOSITORY.parent / "shared" / "models" / "stories260K"


@pytest.mark.parametrize("name", sorted(data_sets.SETS))
def test_every_arm_is_a_valid_run_and_all_send_one_bit(name):
    for arm, settings in design.ALL_ARMS.items():
        config = make_config(evidence.configuration(name, settings, 0, 0.01, "rows.parquet"))
        assert config.wire.bits == (32 if arm == "32 bits" else 1), arm
        assert config.rounds == data_sets.SETS[name].rounds and config.metric == data_sets.SETS[name].metric
        assert config.training.batch_size == (8 if name == "shakespeare" or name.endswith("-few") else 32)


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
    held = tables.Held("sst2", records.results("sst2", tmp_path))
    assert held.best_rival() == "fedavg-lora"
    mean, (low, high) = held.difference("own-prior", "fedavg-lora")
    assert mean == pytest.approx(0.375) and low <= mean <= high
    assert held.at_bytes("fedavg-lora", [0]) == pytest.approx(0.4 + 0.1 * 100 / 900)  # 1000 of 900 to 1800 bytes
    assert held.at_bytes("fed-xs", [0]) is None
    lines, _ = tables.document({name: records.results(name, tmp_path) for name in data_sets.SETS})
    row = next(line for line in lines if line.startswith("| `fedavg-lora`"))
    assert "50.0" in row and "-37.5" in row and "2.0" in row
    runs[1]["split"] = "other"
    (tmp_path / "sst2.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    with pytest.raises(SystemExit, match="different splits"):
        tables.Held("sst2", records.results("sst2", tmp_path)).difference("own-prior", "fedavg-lora")


def test_the_page_has_the_tables_of_the_committed_results():
    """Run `tables.py --write` after new results are added."""
    page = (REPOSITORY / "benchmarks" / "evidence" / "README.md").read_text(encoding="utf-8")
    lines, _ = tables.document({name: records.results(name) for name in data_sets.SETS})
    assert page == tables.written(page, lines)


def test_losses_are_compared_in_pairs_of_clients_and_less_is_better(tmp_path):
    """Two clients and two seeds, a tenth of a nat less for each: the mean difference is -0.1 without any doubt."""
    before = [(2, 3.0, 500), (4, 2.5, 1000)]
    runs = [
        {**record("own-prior", seed, [[1]], 2.4, before), "losses": {"a": 2.0, "b": 3.0 + seed}, "mean": 2.75}
        for seed in (0, 1)
    ]
    runs += [
        {**record("fedavg-lora", seed, [[1]], 2.5, before), "losses": {"a": 2.1, "b": 3.1 + seed}, "mean": 2.85}
        for seed in (0, 1)
    ]
    runs += [{**record("local", 0, [[1]], 2.9, before), "losses": {"a": 2.5, "b": 4.0}, "mean": 3.25}]
    for run in runs:
        del run["answers"]
        run |= {"worst": run["losses"]["b"], "perplexity": 12.345, "metric": "loss"}
    (tmp_path / "shakespeare.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    held = tables.Held("shakespeare", records.results("shakespeare", tmp_path))
    mean, interval = held.difference("own-prior", "fedavg-lora")
    assert mean == pytest.approx(-0.1) and interval == pytest.approx((-0.1, -0.1))
    mean, interval = held.difference("own-prior", "local")
    assert mean == pytest.approx(-0.75) and interval == pytest.approx((-1.0, -0.5))
    assert held.better(["own-prior", "local"]) == "own-prior"
    lines, _ = tables.document({name: records.results(name, tmp_path) for name in data_sets.SETS})
    row = next(line for line in lines if line.startswith("| `fedavg-lora`"))
    assert "2.850" in row and "+0.100" in row and "12.35" in row
    assert "-0.500" in row
    assert any("ahead" in line for line in lines if "minus the best of" in line)


def test_rates_are_ordered_by_what_decides():
    scores = {0.1: 0.5, 0.2: 0.7, 0.3: 0.5, 0.4: None}
    assert evidence.best_rates(scores, "accuracy") == [0.2, 0.1, 0.3, 0.4]
    assert evidence.best_rates(scores, "loss") == [0.1, 0.3, 0.2, 0.4]
    assert evidence.best_rates({0.1: 0.8, 0.2: 0.8 + 1e-16 * 2}, "accuracy") == [
        0.1,
        0.2,
    ]  # one count of right rows
    assert evidence.rates(design.ARMS["local"], 3.0) == [0.003, 0.009, 0.027]


def test_one_more_rate_is_tried_beyond_the_best_at_an_end():
    assert evidence.rate_beyond({0.001: 0.7, 0.003: 0.8, 0.009: 0.9}, "accuracy") == [0.027]
    assert evidence.rate_beyond({0.001: 0.7, 0.003: 0.6, 0.009: 0.5}, "accuracy") == [0.000333]
    assert evidence.rate_beyond({0.001: 0.7, 0.003: 0.8, 0.009: 0.5}, "accuracy") == []
    assert evidence.rate_beyond({0.001: 0.7, 0.003: 0.8, 0.009: 0.9}, "loss") == [0.000333]


def test_sets_have_their_own_model_and_seeds():
    settings = evidence.configuration("sst2-mpnet", design.ARMS["ce-lora-authors"], 0, 0.01, "rows.parquet", "M")
    assert settings["model"]["name"] == "M/all-mpnet-base-v2"
    assert settings["adapter"]["target_modules"] == ["q", "k", "v", "o", "dense"]
    assert {seed for _, _, seed in evidence.plan("larger", [], [])} == {0}
    assert {seed for _, _, seed in evidence.plan("language", [], [])} == {0, 1, 2}
    both = list(evidence.plan("language", ["shakespeare", "sst2-mpnet"], ["local"]))
    assert both == [(name, "local", seed) for name, seed in [
        ("shakespeare", 0), ("sst2-mpnet", 0), ("shakespeare", 1), ("shakespeare", 2),
    ]]  # fmt: skip


@pytest.mark.parametrize("models", [[], ["--models", "absent"]])
def test_an_absent_model_is_named_in_one_line(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--data", str(tmp_path), "--tier", "larger", *models])
    with pytest.raises(SystemExit) as stopped:
        evidence.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.count("\n") == 1 and "all-mpnet-base-v2" in said and "--models" in said


def test_each_task_of_images_has_three_clients_with_its_classes_alone():
    classes = [name for task in client_rows.TASKS for name in task]
    made = client_rows.pictures(pd.DataFrame({"label": classes * 6}), seed=0)
    assert made["client"].nunique() == 9 and len(made) == 60
    for place, task in enumerate(client_rows.TASKS):
        mine = made[made["client"].str.startswith(f"task-{place + 1}-")]
        assert set(mine["label"]) == set(task)
        assert mine.groupby("client").size().tolist() == [2 * len(task)] * 3


def test_speakers_are_those_with_most_to_say_and_kinds_of_instructions_have_two_clients():
    rows = pd.DataFrame({"speaker": [f"s{n}" for n in range(12)], "text": ["a" * (n + 1) for n in range(12)]})
    assert set(client_rows.speakers(rows, 0)["client"]) == {f"s{n}" for n in range(2, 12)}
    asked = pd.DataFrame({"instruction": list("abcc"), "input": "", "output": "x", "task": ["p", "p", "q", "q"]})
    assert sorted(client_rows.instructions(asked, 0)["client"]) == ["p-0", "p-1", "q-0"]


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no real model: {STORIES} is absent")
def test_a_language_model_makes_one_round_and_keeps_losses(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks" / "models")
    import_module("llama2c").convert(STORIES, tmp_path / "models" / "stories260K")
    (tmp_path / "shakespeare").mkdir()
    # Many different tokens, or the run is refused: few of them could be read from an upload.
    letters = np.random.default_rng(0).choice([*string.ascii_letters, *string.digits, " "], (80, 80))
    texts = ["".join(row) for row in letters]
    rows = [{"speaker": "AB"[n % 2], "text": text} for n, text in enumerate(texts)]
    for name, part in (("train", rows[:60]), ("test", rows[60:])):
        pd.DataFrame(part).to_parquet(tmp_path / "shakespeare" / f"{name}.parquet")
    measured = evidence.Measured(tmp_path, tmp_path / "work", tmp_path / "out", tmp_path / "models")
    found = evidence.trial(measured, "shakespeare", "own-prior", 20)
    assert found["train_examples"] == [10, 10] and set(found["losses"]) == {"A", "B"}
    losses = list(found["losses"].values())
    assert found["mean"] == pytest.approx(np.mean(losses)) and found["worst"] == max(losses)
    assert found["perplexity"] == pytest.approx(np.mean(np.exp(losses)))
    assert found["curve"][-1]["mean"] == found["mean"] < found["curve"][0]["mean"]
    assert not (tmp_path / "out").exists() and not (tmp_path / "work").exists()
