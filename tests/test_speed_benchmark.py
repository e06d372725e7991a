"""The comparison of speed: all contestants do the same work, all processes are counted, and results add up."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from trifed import make_config, run
from trifed.config.toml_files import read_toml

SPEED = Path(__file__).resolve().parents[1] / "benchmarks" / "speed"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The scripts, as one object with a module for each."""
    monkeypatch.syspath_prepend(str(SPEED))
    scripts = ModuleType("speed")
    for name in ("job", "measure", "page", "plain_peft", "results"):
        setattr(scripts, name, __import__(name))
    return scripts


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's, about a name in transformers
def test_the_loop_by_hand_does_what_trifed_does(
    speed: Any, tiny_encoder: Path, toy_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(tiny_encoder, tmp_path / "model")
    about = json.loads((model / "config.json").read_text())
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(about | without))
    rows = [line.rsplit(",", 2)[:2] for line in toy_table.read_text().splitlines()[1:]]
    table = pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    monkeypatch.setitem(speed.job.SIZES, "short", (2, 3))
    folder = tmp_path / "job"
    folder.mkdir()
    job = speed.job.Job("short", 4, evaluated=True, clients=2, examples=18)
    speed.job.prepare(job, tmp_path / "rows.parquet", folder, str(model))
    with torch.random.fork_rng():
        speed.plain_peft.main(folder, tmp_path / "out.json")
    done, asked = (json.loads(path.read_text()) for path in (tmp_path / "out.json", folder / "job.json"))
    run(make_config(read_toml(folder / "trifed.toml")), tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    trained = [event for event in events if event["event"] == "trained"]
    assert done["steps"] == sum(event["steps"] for event in trained) == 12
    assert {name: done[name] for name in ("examples", "padded_tokens")} == {
        name: asked[name] for name in ("examples", "padded_tokens")
    }
    for number in (1, 2):
        losses = [event["loss"] for event in trained if event["round"] == number]
        assert done["losses"][number - 1] == pytest.approx(sum(losses) / 2, abs=1e-5)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert done["accuracies"][-1] == pytest.approx(summary["accuracy"]["weighted_mean"])


def test_processes_of_processes_are_counted(speed: Any, tmp_path: Path) -> None:
    work = "sum(range(10**7))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); x = bytes(200 << 20)"
    measured = speed.measure.measure([sys.executable, "-c", code], {}, tmp_path / "log")
    alone = speed.measure.measure([sys.executable, "-c", "pass"], {}, tmp_path / "log")
    assert measured.cpu_seconds > alone.cpu_seconds > 0
    with pytest.raises(SystemExit, match="code 3"):
        speed.measure.measure([sys.executable, "-c", "raise SystemExit(3)"], {}, tmp_path / "log")


def made_up(speed: Any) -> dict[str, Any]:
    """Two repetitions of two contestants, of which the second is half as fast, then a third as fast."""
    job = {"rounds": 2, "clients": 2, "steps": 3, "examples": 48, "padded_tokens": 400}
    taken = {"trifed": [(2.0, 0.5), (3.0, 0.5)], "plain-peft": [(4.0, 0.51), (9.0, 0.5)]}
    runs = [
        {"environment": "here", "job": "short", "contestant": name, "repetition": repetition, "steps": 12}
        | {"seconds": seconds, "cpu_seconds": seconds, "peak_mib": 100.0, "losses": [0.7, loss]}
        for name, pairs in taken.items()
        for repetition, (seconds, loss) in enumerate(pairs)
    ]
    here = {"processor": "none", "cpus": 2, "packages": {"torch": "2"}}
    return {"environments": {"here": here}, "jobs": {"short": job}, "runs": runs}


def test_ratios_are_of_one_repetition(speed: Any, tmp_path: Path) -> None:
    held = made_up(speed)
    speed.results.save(held, tmp_path / "against.json")
    found = speed.results.load(tmp_path / "against.json")["summary"]["here"]["short"]
    assert found["contestants"]["plain-peft"]["all_seconds"] == [4.0, 9.0]
    assert found["contestants"]["plain-peft"]["seconds"] == 6.5
    assert found["trifed_to"] == {
        "plain-peft": {
            "seconds": pytest.approx((2 / 4 + 3 / 9) / 2, abs=1e-3),
            "cpu_seconds": 0.417,
            "peak_mib": 1,
        }
    }
    assert found["same_work"]


@pytest.mark.parametrize("change", [{"steps": 11}, {"examples": 40}, {"losses": [0.7, 0.6]}])
def test_other_work_is_found(speed: Any, change: dict[str, Any]) -> None:
    held = made_up(speed)
    held["runs"][-1] |= change
    assert len(speed.results.same_work(held, "here", "short")) == 1


def test_the_page_draws_what_is_there(speed: Any, tmp_path: Path) -> None:
    speed.results.save(made_up(speed), tmp_path / "against.json")
    panel = {"title": "a step", "unit": "ms", "x": [1, 2], "lines": {"one": [3.0, 2.0]}}
    (tmp_path / "step.json").write_text(json.dumps({"panels": [panel]}))
    about, panels = speed.page.collect(tmp_path)
    assert "2 cores" in about
    assert [list(p["bars"].values()) for p in panels[:3]] == [
        [[2.0, 3.0], [4.0, 9.0]],
        [[2.0, 3.0], [4.0, 9.0]],
        [[100 / 1024] * 2, [100 / 1024] * 2],
    ]
    speed.page.draw(panels, about).savefig(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"
