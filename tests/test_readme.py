"""The README, followed from a fresh folder: each of its commands runs, with a tiny model and one round."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.core
import typer.main

from test_cli_help import Said, call
from trifed.cli.app import app
from trifed.data import demo_corpus_path

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ALLOW = ("--set", "privacy.few_tokens=allow")
SMALL = ("--rounds", "1", "--set", "controls=false", "--set", "training.device=cpu", *ALLOW)
"""Settings for the tiny model, which has words for few of the tokens."""
MOST_WORDS = 700


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language; '' for those to type into a shell."""
    return [code for found, code in FENCE.findall(README) if found == language]


def typed(start: str = "") -> list[str]:
    """All commands of the README's blocks, without comments, in their order."""
    lines = [line.partition("  #")[0].strip() for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line.startswith(start)]


def in_the_text() -> list[str]:
    """Commands that stand in sentences and in tables."""
    return re.findall(r"`((?:trifed|make|pip) [^`]+)`", FENCE.sub("", README))


def table() -> list[str]:
    """Commands of the table of kinds of data."""
    return [line for line in in_the_text() if line.startswith("trifed run --data ")]


def shape(line: str) -> str:
    """A line of output with its numbers and the units of bytes replaced, and spaces and frames collapsed."""
    numbers = re.sub(r"[-+−]?\d+([.:/]\d+)*", "#", line)
    return " ".join(re.sub(r"# (B|KB|MB)\b", "# bytes", numbers).split())


def test_it_is_short() -> None:
    text = re.sub(r"\]\([^)]*\)", "]", FENCE.sub("", README))
    assert len(re.findall(r"[^\W_][\w'.,+-]*", text)) <= MOST_WORDS


def test_every_command_is_one_that_these_tests_know() -> None:
    followed = (
        "trifed run", "trifed report", "trifed predict", "trifed export", "trifed flower", "pip install",
        "python3 -m venv",
    )  # fmt: skip
    assert [line for line in typed() if not line.startswith(followed)] == []
    parsed = {"trifed demo", "trifed audit runs/tickets", "make docs", "pip install '.[flower]'"}
    assert set(in_the_text()) - set(table()) == parsed


def test_what_is_installed_exists() -> None:
    made = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = " && ".join([*typed("pip"), *(line for line in in_the_text() if line.startswith("pip"))])
    for version in re.findall(r"torch==[\d.]+", installed):
        assert f"pip install --quiet {version}" in made
    extras = set(re.findall(r"\.\[(\w+)\]", installed))
    assert extras == {"demo", "flower"} and extras <= settings["optional-dependencies"].keys()
    for target in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{target}:", made, re.MULTILINE)


@pytest.mark.parametrize("line", ["trifed demo", "trifed audit runs/tickets"])
def test_a_command_that_takes_long_is_understood(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    command = group.commands[name]
    command.make_context(name, words)  # an unknown flag or a missing argument raises


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what ships in the repository, in which the test works."""
    (tmp_path / "examples").mkdir()
    shutil.copy(REPOSITORY / "examples" / "tickets.csv", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def give(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Said]]:
    """`give("trifed run --data x.csv", "--rounds", 1)`: what a command of the README printed; it must succeed."""

    def run(line: str, *more: object) -> Said:
        found = call(capsys, monkeypatch, *shlex.split(line)[1:], *more)
        assert found.code == 0, f"{line}\n{found.err}"
        return found

    return run


def test_the_table_that_ships_is_a_part_of_the_demo_corpus() -> None:
    corpus = {
        tuple(json.loads(line)[name] for name in ("text", "label", "site"))
        for line in demo_corpus_path().read_text(encoding="utf-8").splitlines()
    }
    with (REPOSITORY / "examples" / "tickets.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = map(tuple, csv.reader(file))
    assert header == ("text", "label", "site") and set(rows) < corpus
    assert f"The file holds {len(rows)} invented" in README and len({site for *_, site in rows}) == 5


@pytest.mark.slow
def test_the_first_run_and_what_follows_it(fresh: Path, give: Callable[..., Said], tiny_encoder: Path) -> None:
    first, *more = typed("trifed run")
    assert more == []
    printed = give(first, *SMALL, "--model", tiny_encoder).out
    (kept,) = blocks("text")
    end = kept.rindex("│\n") + 2
    lines, verdict = kept[:end].splitlines(), " ".join(kept[end:].split())
    known = {shape(line) for line in printed.splitlines()}
    assert len(lines) == 8 and [line for line in lines if shape(line) not in known] == []
    # The verdict is a sentence, whose numbers decide on its words: a gain in points and its interval.
    assert re.search(r"\d points .*\(95 % .*\d to .*\d\)", verdict)
    assert re.search(r"\d points .*\(95 % .*\d to .*\d\)", " ".join(printed.split()))
    give(*typed("trifed report"))
    assert "<html" in (fresh / "runs" / "tickets" / "report.html").read_text(encoding="utf-8")[:200]
    assert give(*typed("trifed predict")).out
    give(*typed("trifed export"))
    assert (fresh / "hotel" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_the_python_runs(fresh: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line]) <= 10
    small = '"rounds": 1, "controls": False, "privacy": {"few_tokens": "allow"}'
    changed = code.replace('"rounds": 3', small).replace('"demo"', repr(str(tiny_encoder)))
    assert small in changed and '"demo"' not in changed
    exec(changed, {})
    assert "hotel" in capsys.readouterr().out


def test_a_server_and_a_site_are_set_up(fresh: Path, give: Callable[..., Said], toy_table: Path) -> None:
    pytest.importorskip("cryptography")
    init, join, sites, trust = typed("trifed flower")
    guide = (REPOSITORY / "docs" / "deployment.md").read_text(encoding="utf-8")
    (fresh / "run.toml").write_text(re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)[0], encoding="utf-8")
    shutil.copy(toy_table, "tickets.csv")
    assert "The run is sealed" in give(init).out
    shutil.copy(Path("server") / "ca.pem", ".")
    give(join)
    shutil.copy(Path("site") / "berlin.pub", Path("server") / "keys")
    give(sites)
    shutil.copy(Path("server") / "sites.pub", ".")
    give(trust, "--yes")
    (block,) = (block for block in blocks("") if "trifed flower" in block)
    named = set(re.findall(r"\b(?:site|server)/\w+\.sh", block))
    assert len(named) == 4 and all(os.access(name, os.X_OK) for name in named)
