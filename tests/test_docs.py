"""The documentation, followed word for word: what it says to type is typed, what it says to run is run."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from trifed import make_config

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The page's code blocks in one language; '' for those to type into a shell."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [code for found, code in FENCE.findall(text) if found == language]


def do(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{shlex.join(command)[:200]}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page):
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|md))`", page.read_text(encoding="utf-8")))
    folders = [REPOSITORY, REPOSITORY / "src" / "trifed"]
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in folders)] == []


def test_the_parts_of_own_prior_fit_another_method():
    (text,) = blocks("own-prior.md", "toml")
    config = make_config(tomllib.loads(text))
    assert config.method.name == "fedavg-lora" and config.personalization.interpolate == 0.75


@pytest.mark.slow
def test_a_method_is_added_by_following_the_page(demo_model, toy_table, tmp_path):
    (tmp_path / "capped_lora.py").write_text(blocks("add-a-method.md", "python")[0], encoding="utf-8")
    with toy_table.open(newline="", encoding="utf-8") as old, (tmp_path / "tickets.csv").open("w") as new:
        header, *rows = csv.reader(old)
        csv.writer(new).writerows([["queue" if name == "label" else name for name in header], *rows])
    commands = [shlex.split(line) for block in blocks("add-a-method.md", "") for line in block.splitlines()]
    assert ["cost" in commands[0], commands[1][1]] == [True, "run"]
    costs, _ = [do([sys.executable, "-m", "trifed.cli.app", *command[1:]], tmp_path) for command in commands]
    (row,) = [row for row in csv.DictReader(costs.splitlines()) if row["method"] == "capped-lora"]
    # B of 12 layers, 384 x 8; A and the head stay.
    assert row["sent_values"] == str(12 * 8 * 384)
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["method"] == "capped-lora" and summary["finished"]


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(demo_model, tmp_path):
    told = do([sys.executable, "-c", "\n".join(blocks("tutorial.md", "python"))], tmp_path)
    assert "bytes sent" in told and "layer.0.attention.self.query.lora_C.weight" in told
    assert (tmp_path / "tutorial.html").is_file() and (tmp_path / "runs" / "tutorial-rivals").is_dir()
