"""`trifed export`, `predict` and `evaluate` as they are typed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pexpect
import pytest

from test_cli_help import call
from trifed import load_client
from trifed.export.export import FORMS

TEXTS = ["invoice refund word001", "parcel courier word002", "password reset token"]


@pytest.fixture
def trifed(capsys, monkeypatch):
    """`trifed("predict", folder, stdin=b"…")`: its code and what it printed; its input is no terminal."""

    def run(*args, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return call(capsys, monkeypatch, *args)

    return run


@pytest.fixture
def run_folder(finished):
    return finished("ce-lora").path


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("form", FORMS)
def test_export_says_where_the_folder_is(trifed, run_folder, tmp_path, form):
    said = trifed("export", run_folder, "--client", "amber", "--form", form, "--to", tmp_path / "new")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"{tmp_path / 'new'}: {form}") and said.out.count("\n") == 1
    asked = trifed("predict", tmp_path / "new", "--text", TEXTS[0])
    if form == "lora-no-head":
        assert asked.code == 2 and "without its head" in asked.err
    else:
        expected = load_client(run_folder / "clients" / "amber").predict(TEXTS[:1])
        assert [row["label"] for row in rows_of(asked.out)] == expected


def test_export_all_is_measured_as_a_folder_of_models(trifed, run_folder, toy_table, tmp_path):
    said = trifed("export", run_folder, "--all", "--form", "lora", "--to", tmp_path / "all")
    assert (said.code, said.err) == (0, "")
    both = [
        trifed("evaluate", place, toy_table, "--client", "all", "--format", "csv")
        for place in (run_folder, tmp_path / "all")
    ]
    first, second = (rows_of(one.out) for one in both)
    assert [row["client"] for row in first] == [row["client"] for row in second] == ["amber", "basil", "coral"]
    for mine, theirs in zip(first, second, strict=True):
        assert mine["accuracy"] == theirs["accuracy"]
        assert float(mine["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-4)
    assert len({row["loss"] for row in first}) == 3


def test_a_baselines_client_is_exported_from_its_own_folder(trifed, run_folder, finished, tmp_path):
    whole = shutil.copytree(run_folder, tmp_path / "run")
    shutil.copytree(finished("local").path, whole / "baselines" / "local")
    said = trifed("export", whole / "baselines" / "local", "--client", "amber", "--form", "tri-matrix")
    assert said.code == 2
    assert "'tri-matrix'" in said.err and "lora, lora-no-head, merged" in said.err
    assert trifed("export", whole / "baselines" / "local", "--client", "amber").code == 0
    assert (whole / "baselines" / "local" / "exports" / "lora" / "amber" / "README.md").is_file()


@pytest.mark.parametrize("flags", [[], ["--client", "amber", "--all"]])
def test_export_asks_for_one_client_or_all(trifed, run_folder, flags):
    said = trifed("export", run_folder, *flags)
    assert said.code == 2
    assert "--client NAME" in said.err and "amber, basil, coral" in said.err


def test_predict_reads_a_file_lines_and_flags_alike(trifed, run_folder, tmp_path):
    (tmp_path / "new.csv").write_text("text\n" + "\n".join(TEXTS) + "\n", encoding="utf-8")
    amber = (run_folder, "--client", "amber")
    lines = ("\n".join(TEXTS) + "\n").encode()
    said = [
        trifed("predict", run_folder, tmp_path / "new.csv", "--client", "amber"),
        trifed("predict", *amber, *(part for text in TEXTS for part in ("--text", text))),
        trifed("predict", *amber, stdin=lines),
        trifed("predict", run_folder, "-", "--client", "amber", stdin=lines),
    ]
    assert {one.code for one in said} == {0}
    assert len({one.out for one in said}) == 1
    rows = rows_of(said[0].out)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == load_client(run_folder / "clients" / "amber").predict(TEXTS)


def test_predict_shows_a_table_when_asked(trifed, run_folder):
    said = trifed(
        "predict", run_folder, "--client", "amber", "--text", TEXTS[0], "--format", "table", "--top", "3"
    )
    assert said.code == 0
    for word in (TEXTS[0], "probability", "billing", "delivery", "login"):
        assert word in said.out


def test_predict_writes_a_new_file_by_its_ending_and_never_over_another(trifed, run_folder, tmp_path):
    amber = ("predict", run_folder, "--client", "amber", "--text", TEXTS[0])
    for name in ("new.csv", "new.jsonl"):
        assert trifed(*amber, "--out", tmp_path / name) == (0, "", "")
    (row,) = rows_of((tmp_path / "new.csv").read_text(encoding="utf-8"))
    record = json.loads((tmp_path / "new.jsonl").read_text(encoding="utf-8"))
    assert (row["label"], float(row["probability"])) == (record["label"], record["probability"])
    before = (tmp_path / "new.csv").read_bytes()
    said = trifed(*amber, "--out", tmp_path / "new.csv")
    assert said.code == 2 and "exists already" in said.err
    assert (tmp_path / "new.csv").read_bytes() == before
    said = trifed(*amber, "--out", tmp_path / "new.csv" / "below.csv")
    assert said.code == 2 and "cannot be written" in said.err
    said = trifed(*amber, "--out", tmp_path / "other.csv", "--format", "table")
    assert said.code == 2 and "--format" in said.err
    assert not (tmp_path / "other.csv").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"new.csv", "new.jsonl"}


def test_a_bad_line_leaves_no_file(trifed, run_folder, tmp_path):
    said = trifed("predict", run_folder, "--client", "amber", "--out", tmp_path / "new.csv", stdin=b"good\n\n")
    assert (said.code, said.out) == (2, "")
    assert "standard input, line 2: " in said.err and said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_text_together_are_refused(trifed, run_folder, toy_table):
    said = trifed("predict", run_folder, toy_table, "--client", "amber", "--text", "invoice")
    assert said.code == 2 and "--text" in said.err


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_column_is_named_by_its_flag(trifed, run_folder, toy_table, command):
    said = trifed(command, run_folder, toy_table, "--client", "amber", "--text-column", "txt")
    assert said.code == 2
    assert all(token in said.err for token in ("'txt'", "'text'?", "--text-column"))


def test_evaluate_shows_labels_and_what_is_confused(trifed, run_folder, toy_table):
    said = trifed("evaluate", run_folder, toy_table, "--client", "amber")
    found = json.loads(trifed("evaluate", run_folder, toy_table, "--client", "amber", "--format", "json").out)
    assert said.code == 0
    (one,) = found["clients"]
    assert "On 120 examples" in said.out and "Most often confused" in said.out
    assert f"{100 * one['accuracy']:.1f}" in said.out and f"{one['loss']:.3f}" in said.out
    assert sum(score["examples"] for score in one["labels"]) == 120
    wrong = sum(pair["count"] for pair in one["confusions"])
    assert one["accuracy"] == pytest.approx(1 - wrong / 120)


def test_evaluate_refuses_labels_of_another_column(trifed, run_folder, toy_table):
    said = trifed("evaluate", run_folder, toy_table, "--client", "all", "--label-column", "site")
    assert (said.code, said.out) == (2, "")
    assert "row 1: " in said.err and "'amber'" in said.err and "billing, delivery, login" in said.err


@pytest.mark.slow
def test_ctrl_c_leaves_no_file(run_folder, tmp_path):
    out = tmp_path / "out" / "labels.csv"
    command = [
        sys.executable,
        "-m",
        "trifed.cli.app",
        "predict",
        str(run_folder),
        "--client",
        "amber",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    process.stdin.write(b"invoice word001\n" * 600)  # two chunks and the start of a third, and no end
    process.stdin.flush()
    until = time.monotonic() + 300
    while not (out.parent.is_dir() and any(path.stat().st_size for path in out.parent.iterdir())):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=300)
    assert process.returncode not in (0, 2)
    assert said == b"" and b"Traceback" not in complaint
    assert list(out.parent.iterdir()) == []


@pytest.mark.slow
def test_in_a_terminal_the_table_comes_whole_after_the_bar(run_folder):
    command = ["-m", "trifed.cli.app", "predict", str(run_folder), "--client", "amber", "--text", TEXTS[0]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    child = pexpect.spawn(
        sys.executable, command, encoding="utf-8", timeout=300, env=environment, dimensions=(30, 90)
    )
    child.expect(pexpect.EOF)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", child.before or "")
    label = load_client(run_folder / "clients" / "amber").predict(TEXTS[:1])[0]
    (row,) = re.findall(rf"│ +1 │ {TEXTS[0]} │ {label} +│ +(0\.\d{{3}}) │", shown)
    assert shown.index("reading the model") < shown.index("texts") < shown.index("┏") < shown.index(row)
