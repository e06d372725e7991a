"""Comparisons: what they run, in real processes too, what they say, what they refuse."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import tomli_w

from trifed.common.errors import RunError
from trifed.common.lock import held
from trifed.experiments.compare import compare, load_comparison
from trifed.experiments.compare_config import make_comparison
from trifed.federation.run_folder import RunFolder
from trifed.methods import METHODS
from trifed.reports.report import report
from trifed.reports.results import Study

METHOD_FILE = """
from dataclasses import replace

from trifed.methods import METHODS

METHOD = replace(METHODS["local"], name="mine")
"""


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def folder_of(result, method, seed):
    return result.path / "runs" / "all" / method / f"seed-{seed}"


def test_every_run_is_there_on_one_split_a_seed(compared):
    result, told = compared
    assert result.data["finished"] and result.data["missing"] == []
    for seed in (0, 1):
        splits = [read(folder_of(result, m, seed), "split.json") for m in ("local", "fedavg-lora")]
        assert splits[0] == splits[1]
    jobs = [event for event in told if event["event"] == "job"]
    assert [event["done"] for event in jobs] == [1, 2, 3, 4] and all(event["all"] == 4 for event in jobs)
    assert read(result.path, "comparison.json") == result.data


def test_its_numbers_are_those_of_the_runs(compared):
    result, _ = compared
    found = result.results["all"]
    assert found["seeds"] == [0, 1] and found["clients"] == ["amber", "basil", "coral"]
    for method in ("local", "fedavg-lora"):
        summaries = [read(folder_of(result, method, seed), "summary.json") for seed in (0, 1)]
        means = [s["accuracy"]["mean"] for s in summaries]
        told = found["methods"][method]
        assert told["mean"] == pytest.approx(np.mean(means)) and told["sd"] == pytest.approx(np.std(means, ddof=1))
        assert told["interval"][0] <= told["mean"] <= told["interval"][1]
        assert told["worst"] == pytest.approx(np.mean([s["accuracy"]["worst"] for s in summaries]))
        assert told["bytes"]["total"] == pytest.approx(np.mean([s["bytes"]["total"] for s in summaries]))
        plain = [s["bytes"]["fedavg_lora_would_send"] for s in summaries]
        assert told["bytes"]["fedavg_lora_would_send"] == pytest.approx(np.mean(plain)) and min(plain) > 0
        assert told["bytes"]["bits"] == 32
        times = {told["bytes"][f"times_fewer{end}"] for end in ("", "_at_32_bits")}
        assert times == ({None} if method == "local" else {summaries[0]["bytes"]["times_fewer"]})
        shown = Study.model_validate(result.data).results["all"].methods[method]
        assert (shown.bits, shown.fedavg_lora_would_send) == (32, pytest.approx(np.mean(plain)))
        assert [p["round"] for p in told["curve"]] == [0, 1, 2, 3, 4]
        assert told["curve"][-1]["mean"] == pytest.approx(told["mean"])
        clients = [[c["now"]["accuracy"] for c in s["clients"]] for s in summaries]
        np.testing.assert_allclose(told["client_accuracy"], np.mean(clients, 0))
    gap = found["methods"]["fedavg-lora"]["mean"] - found["methods"]["local"]["mean"]
    assert found["differences"]["fedavg-lora minus local"]["mean"] == pytest.approx(gap)
    assert set(found["controls"]) == {"probe-alone", "probe-all", "probe-all-prior", "class-means", "majority"}


def test_bytes_so_far_end_with_all_bytes(compared):
    result, _ = compared
    methods = result.results["all"]["methods"]
    assert methods["local"]["bytes"]["total"] == 0 and methods["local"]["bytes_to_target"] == 0
    told = methods["fedavg-lora"]
    sent = [point["bytes"] for point in told["curve"]]
    assert sent[0] == 0 and sent == sorted(sent) and sent[-1] == told["bytes"]["total"]
    # Three clients; a received model counts the upload and the download of its round.
    per_round = 3 * (told["bytes"]["up_per_round"] + told["bytes"]["down_per_round"])
    assert sent[1] == pytest.approx(per_round, rel=0.001)


def test_the_target_is_what_the_first_method_reaches(compared):
    found = compared[0].results["all"]
    assert found["target"] == pytest.approx(found["methods"]["local"]["mean"])


def test_a_second_call_runs_nothing_and_says_the_same(compared, compare_values):
    result, _ = compared
    before = {p: p.stat().st_mtime_ns for p in result.path.rglob("summary.json")}
    told = []
    again = compare(make_comparison(compare_values()), result.path, listener=told.append)
    assert again.data == result.data and [e["event"] for e in told] == ["phase"]
    assert before == {p: p.stat().st_mtime_ns for p in result.path.rglob("summary.json")}


@pytest.mark.slow
def test_what_is_missing_is_run_and_what_was_broken_off_resumed(compared, compare_values, tmp_path):
    result, _ = compared
    folder = shutil.copytree(result.path, tmp_path / "small")
    shutil.rmtree(folder / "runs" / "all" / "local" / "seed-1")
    broken = folder / "runs" / "all" / "fedavg-lora" / "seed-1"
    (broken / "summary.json").unlink()
    half = load_comparison(folder)
    assert half.results["all"]["seeds"] == [0]
    missing = [(m["partition"], m["method"], m["seed"], m["state"]) for m in half.data["missing"]]
    assert [row[:3] for row in missing] == [("all", "local", 1), ("all", "fedavg-lora", 1)]
    assert missing[0][3] == "not started" and re.findall(r"\d+", missing[1][3]) == ["4", "4"]
    jobs = os.cpu_count() or 1  # each process has one thread, as this one has: the numbers are the same
    whole = compare(make_comparison(compare_values()), folder, jobs=jobs)

    def lasting(data):
        methods = data["results"]["all"]["methods"].values()
        return [{key: value for key, value in method.items() if key != "seconds"} for method in methods]

    assert lasting(whole.data) == lasting(result.data)


def test_a_seed_that_not_every_method_has_is_kept(compared, tmp_path):
    result, _ = compared
    folder = shutil.copytree(result.path, tmp_path / "small")
    shutil.rmtree(folder / "runs" / "all" / "local" / "seed-1")
    found = load_comparison(folder).results["all"]
    assert found["seeds"] == [0, 1]
    assert {name: method["seeds"] for name, method in found["methods"].items()} == {
        "local": [0],
        "fedavg-lora": [0, 1],
    }
    whole = result.results["all"]["methods"]
    assert found["methods"]["fedavg-lora"]["mean"] == whole["fedavg-lora"]["mean"]
    means = [read(folder_of(result, m, 0), "summary.json")["accuracy"]["mean"] for m in ("fedavg-lora", "local")]
    gap = found["differences"]["fedavg-lora minus local"]
    assert gap["seeds"] == [0] and gap["mean"] == pytest.approx(means[0] - means[1])
    assert found["target"] == pytest.approx(means[1])
    shutil.rmtree(folder / "runs" / "all" / "local")
    alone = load_comparison(folder).results["all"]
    assert set(alone["methods"]) == {"fedavg-lora"} and alone["differences"] == {}
    assert alone["target"] is None and alone["methods"]["fedavg-lora"]["rounds_to_target"] is None
    report(folder, tmp_path / "page.md")


def test_states_of_runs_that_are_not_finished(compared, tmp_path):
    folder = shutil.copytree(compared[0].path, tmp_path / "small")
    begun = folder / "runs" / "all" / "fedavg-lora" / "seed-0"
    (begun / "summary.json").unlink()
    shutil.rmtree(folder / "runs" / "all" / "local" / "seed-1")

    def states():
        return {m["method"]: m["state"] for m in load_comparison(folder).data["missing"]}

    assert states() == {"fedavg-lora": "stopped in round 4 of 4", "local": "not started"}
    with held(folder), held(begun):
        assert states() == {"fedavg-lora": "running in round 4 of 4", "local": "waiting"}
    assert states()["local"] == "not started"


def test_other_settings_or_another_split_are_refused(compared, compare_values, tmp_path):
    folder = shutil.copytree(compared[0].path, tmp_path / "small")
    values = compare_values()
    values["run"] = {**values["run"], "rounds": 5}
    with pytest.raises(RunError, match=r"'rounds' \(4 .*5 "):
        compare(make_comparison(values), folder)
    path = folder / "runs" / "all" / "local" / "seed-0" / "split.json"
    split = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**split, "content_hash": "other"}), encoding="utf-8")
    with pytest.raises(RunError, match="different splits"):
        load_comparison(folder)


@pytest.mark.usefixtures("without_processes")
def test_a_comparison_that_is_running_or_was_killed_has_a_report_too(compared, compare_values, tmp_path):
    folder = shutil.copytree(compared[0].path, tmp_path / "small")
    whole = report(folder, tmp_path / "whole.md").read_text(encoding="utf-8")
    shutil.rmtree(folder / "runs" / "all" / "local" / "seed-1")
    written = []

    def killed(event):
        if event["event"] == "tick" and not written:
            written.append(report(folder, tmp_path / "half.md").read_text(encoding="utf-8"))

    compare(make_comparison(compare_values()), folder, listener=killed)
    assert "local (seed 1)" in written[0] and "local (seed 1)" not in whole


def test_a_rate_is_chosen_on_validation_data_of_another_seed(tuned):
    told = tuned.data["tuning"]["all"]
    assert (told["seed"], told["rounds"]) == (7, 2)
    grid, chosen = told["methods"]["local"]["grid"], told["methods"]["local"]["chosen"]
    folders = {path.name: path for path in (tuned.path / "tuning" / "all" / "local").iterdir()}
    assert set(folders) == {f"rate-{rate}" for rate in grid} and {"1e-05", "0.0001"} < set(grid)
    for rate, reached in grid.items():
        curve = read(folders[f"rate-{rate}"], "summary.json")["curve"]
        assert curve[-1]["round"] == 2 and curve[-1]["valid_mean"] == reached
    assert grid[f"{chosen:g}"] == max(grid.values())
    assert tuned.results["all"]["methods"]["local"]["learning_rate"] == chosen
    # At 1e-5 and 1e-4 nothing is learned: one end of the grid is the best, and one rate beyond it was tried.
    assert len(grid) == 3


@pytest.mark.slow
def test_a_run_that_fails_ends_the_comparison_with_its_message(compare_values, toy_table, tmp_path):
    values = compare_values(seeds=[0])
    table = tmp_path / "t.csv"
    shutil.copy(toy_table, table)
    values["run"] = {**values["run"], "data": {**values["run"]["data"], "source": str(table), "label": "none"}}
    with pytest.raises(RunError, match=r"local.*seed 0.*'none'"):
        compare(make_comparison(values), tmp_path / "c")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_a_comparison_that_goes_on(compare_values, tmp_path, monkeypatch):
    """Its method is in a file, which has to reach the process of the run."""
    (tmp_path / "mine.py").write_text(METHOD_FILE, encoding="utf-8")
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["local"], name="mine"))
    values = compare_values(methods=["mine"], seeds=[0])
    values["run"] = {**values["run"], "rounds": 400}
    (tmp_path / "c.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "trifed.cli.app", "compare", "c.toml", "--method-file", "mine.py"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = tmp_path / "runs" / "small" / "runs" / "all" / "mine" / "seed-0"
    try:
        deadline = time.monotonic() + 900
        while not (run / "checkpoint.safetensors").is_file() and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=600)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    events = len(RunFolder(run).events())
    time.sleep(1)
    assert len(RunFolder(run).events()) == events  # nobody goes on training
    missing = load_comparison(tmp_path / "runs" / "small").data["missing"]
    assert [m["state"].startswith("stopped in round") for m in missing] == [True]
