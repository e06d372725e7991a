"""The documentation, followed word for word: what it says to type is typed, what it says to run is run."""

from __future__ import annotations

import csv
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import pytest

from in_this_process import in_this_process
from test_cli_help import call
from trifed import make_comparison, make_config
from trifed.config.settings import TaskName
from trifed.deployment.site_settings import SiteSettings
from trifed.methods import METHODS, ORIGINS, compose
from trifed.methods.aggregation import AggregationSettings
from trifed.methods.personalization import PersonalizationSettings
from trifed.methods.sealed import cannot_seal
from trifed.tasks import base_model

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The page's code blocks in one language; '' for those to type into a shell."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [code for found, code in FENCE.findall(text) if found == language]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page):
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|md))`", page.read_text(encoding="utf-8")))
    folders = [REPOSITORY, REPOSITORY / "src" / "trifed"]
    assert [name for name in sorted(named) if not any((folder / name).exists() for folder in folders)] == []


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_begins_with_a_short_paragraph_of_its_own(page):
    title, opening = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert re.fullmatch("# .+", title) and opening[0] not in "|#!-" and "```" not in opening
    assert 5 <= len(opening.split()) <= 60
    others = {other.read_text(encoding="utf-8").split("\n\n")[1] for other in DOCS.glob("*.md") if other != page}
    assert opening.split()[:3] not in [other.split()[:3] for other in others]


def test_the_parts_of_own_prior_fit_another_method():
    parts, groups, _ = map(tomllib.loads, blocks("compose.md", "toml"))
    assert make_config({**parts, **groups}).aggregation.members == [["north", "south"], ["east"]]
    config = make_config(parts)
    assert config.method.name == "fedavg-lora" and config.personalization.interpolate == 0.75


def test_the_files_of_the_pages_are_complete():
    (table,) = map(tomllib.loads, blocks("your-table.md", "toml"))
    assert make_config(table).data.clients.column == "site"
    (rivals,) = map(tomllib.loads, blocks("compare.md", "toml"))
    part = tomllib.loads(blocks("compose.md", "toml")[-1])
    assert make_comparison({**rivals, **part}).tuning.learning_rates == [1e-3, 3e-3, 1e-2]


def test_the_page_of_methods_has_each_method_once():
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE)) == sorted(METHODS)


def test_the_page_of_tasks_has_each_task_once():
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([\w-]+)`", text, re.MULTILINE)) == sorted(get_args(TaskName))


def test_the_page_of_a_sites_settings_has_each_once():
    text = (DOCS / "site-settings.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `\[?(\w+)", text, re.MULTILINE)) == sorted(SiteSettings.model_fields)


def test_the_page_of_sealed_sums_says_which_methods_can_be_sealed():
    text = (DOCS / "secure-aggregation.md").read_text(encoding="utf-8")
    paragraph = text.partition("These methods can be sealed:")[2].partition("\n\n")[0]
    can, cannot = (set(re.findall(r"`([\w-]+)`", part)) for part in paragraph.split("The others cannot:"))
    reasons = {
        name: cannot_seal(compose(method, PersonalizationSettings(), AggregationSettings()))
        for name, method in METHODS.items()
    }
    assert can == {name for name, reason in reasons.items() if not reason}
    assert cannot == {name for name, reason in reasons.items() if reason}


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's folder, in which the test works; what a page registers is forgotten."""
    monkeypatch.chdir(tmp_path)
    with patch.dict(METHODS), patch.dict(ORIGINS):
        yield tmp_path


@pytest.mark.slow
def test_a_method_is_added_by_following_the_page(demo_model, reader, toy_rows, capsys, monkeypatch):
    """With the demo model itself, whose steps take long: twelve rows a site are enough to train on."""
    (reader / "capped_lora.py").write_text(blocks("add-a-method.md", "python")[0], encoding="utf-8")
    table = toy_rows(reader / "rows.csv", rows_a_site=12)
    with table.open(newline="", encoding="utf-8") as old, (reader / "requests.csv").open("w") as new:
        header, *rows = csv.reader(old)
        renamed = {"text": "message", "label": "queue"}
        csv.writer(new).writerows([[renamed.get(name, name) for name in header], *rows])
    commands = [shlex.split(line) for block in blocks("add-a-method.md", "") for line in block.splitlines()]
    assert ["cost" in commands[0], commands[1][1]] == [True, "run"]
    costs, done = [call(capsys, monkeypatch, *command[1:]) for command in commands]
    assert (costs.code, done.code) == (0, 0), costs.err + done.err
    (row,) = [row for row in csv.DictReader(costs.out.splitlines()) if row["method"] == "capped-lora"]
    # B of 12 layers, 384 x 8; A and the head stay.
    assert row["sent_values"] == str(12 * 8 * 384)
    summary = json.loads((reader / "runs" / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["method"] == "capped-lora" and summary["finished"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_tutorial_runs_as_it_stands(reader, tiny_reader, capsys, monkeypatch):
    """With a smaller model under the name demo, and in one process, where its comparison starts several."""
    resolve = base_model._resolve
    monkeypatch.setattr(base_model, "_resolve", lambda name: resolve(tiny_reader if name == "demo" else name))
    with in_this_process():
        exec("\n".join(blocks("tutorial.md", "python")), {})
    told = capsys.readouterr().out
    assert "bytes sent" in told and "layer.0.attention.self.query.lora_C.weight" in told
    assert (reader / "tutorial.html").is_file() and (reader / "runs" / "tutorial-rivals").is_dir()
