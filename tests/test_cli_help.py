"""The command line's help; and what the other test_cli files share: `call`, `tree` and `finished_run`."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import torch
import typer

from trifed.cli import app as cli
from trifed.common.version import __version__
from trifed.config.run import make_config
from trifed.experiments.runner import run
from trifed.reports.settings import render_settings


class Said(NamedTuple):
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: object) -> Said:
    """`trifed ARGS` in this process."""
    monkeypatch.setattr(sys, "argv", ["trifed", *map(str, args)])
    capsys.readouterr()
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int)
        code = end.code or 0
    return Said(code, *capsys.readouterr())


def finished_run(values: dict[str, Any], folder: Path) -> Path:
    """A whole run from nested values, for fixtures that outlive a test; on one thread as the tests are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(make_config(values), folder).path
    finally:
        torch.set_num_threads(before)


def tree(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ([], "trifed run my.toml"),
        (["run"], "trifed run my.toml"),
        (["demo"], "trifed demo --rounds 4"),
        (["report"], "trifed report runs/demo"),
        (["privacy"], "trifed privacy runs/tickets"),
        (["doctor"], "trifed doctor runs/tickets"),
        (["export"], "trifed export runs/tickets --client berlin"),
        (["predict"], "trifed predict runs/tickets --client berlin"),
        (["evaluate"], "trifed evaluate runs/tickets new.csv --client berlin"),
    ],
)
def test_every_help_has_an_example(capsys, monkeypatch, command, example):
    said = call(capsys, monkeypatch, *command, "--help")
    assert said.code == 0
    assert "Example" in said.out
    assert example in said.out


def helps(command: click.Command, path: str = "trifed") -> Iterator[tuple[str, str]]:
    """Every text of help, of all commands below one, with the command that has it."""
    yield from ((path, text) for text in (command.help, command.epilog, command.short_help) if text)
    yield from ((path, text) for one in command.params if (text := getattr(one, "help", None)))
    for name, below in getattr(command, "commands", {}).items():
        yield from helps(below, f"{path} {name}")


def swallowed(text: str) -> list[str]:
    """What Rich would take for markup and not show, headings in bold apart."""
    return [tag for tag in re.findall(r"(?<!\\)\[([a-zA-Z#/@][^\[\]]*)\]", text) if tag not in ("bold", "/bold")]


def test_no_help_has_words_that_are_taken_for_markup():
    assert swallowed("belongs under [run] or \\[data], [bold]not[/bold] 'trifed[demo]'") == ["run", "demo"]
    found = list(helps(typer.main.get_command(cli.app)))
    assert {"trifed compare", "trifed flower init"} <= {path for path, _ in found}
    assert [(path, tags) for path, text in found if (tags := swallowed(text))] == []


def test_no_line_of_help_is_wider_than_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in ([], ["run"], ["demo"], ["export"], ["predict"], ["evaluate"], ["privacy"], ["doctor"]):
        assert max(map(len, call(capsys, monkeypatch, *command, "--help").out.splitlines())) <= 80


def test_a_paragraph_of_help_breaks_where_its_lines_end():
    """Rich keeps the line breaks of a docstring: a line that is too wide would break twice."""
    paragraphs = [
        (path, text.replace("\\[", "[").splitlines())
        for path, whole in helps(typer.main.get_command(cli.app))
        for text in whole.split("\n\n")
        if "\b" not in text
    ]
    assert len(paragraphs) > 100
    assert [(path, line) for path, lines in paragraphs for line in lines[:-1] if len(line) > 78] == []


def test_the_file_in_the_help_is_a_configuration(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = call(capsys, monkeypatch, "run", "--help").out
    start = text.index('name = "tickets"')
    values = tomllib.loads(text[start : text.index("╭─ Arguments")])
    config = make_config(values)
    assert (config.rounds, config.data.clients.column, config.method.name) == (20, "site", "own-prior")


def test_help_of_demo_names_the_extra_to_install(capsys, monkeypatch):
    assert "'.[demo]'" in call(capsys, monkeypatch, "demo", "--help").out


def test_help_of_run_names_every_flag(capsys, monkeypatch):
    said = call(capsys, monkeypatch, "run", "--help")
    for flag in ("--data", "--model", "--method", "--baseline", "--set", "--resume", "--seed", "--rounds"):
        assert flag in said.out


def test_version(capsys, monkeypatch):
    assert call(capsys, monkeypatch, "--version") == (0, f"trifed {__version__}\n", "")


@pytest.mark.parametrize("command", [[], ["run"]])
def test_without_anything_to_do_the_help_is_shown(capsys, monkeypatch, command):
    said = call(capsys, monkeypatch, *command)
    assert said.code == 2
    assert "Usage: trifed" in said.out + said.err


def test_settings_lists_every_setting_with_its_meaning():
    table = render_settings()
    names, _, meanings = ([str(cell) for cell in column.cells] for column in table.columns)
    assert all(meanings)
    for name in ("rounds", "data.clients.alpha", "training.learning_rate", "method.name", "method.self_weight"):
        assert name in names
    assert len(names) == len(set(names))
