"""The README's table of kinds of data: each command reads such data and takes a step with a tiny model."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from test_cli_help import call
from test_readme import ALLOW, table

SITES = ("berlin", "oslo", "paris")


def write_tables(folder: Path) -> None:
    """A table of all sites, and a table for each, with the columns that the README names."""
    rows = [(f"message {n} of {site}", ("billing", "login")[n % 2], site) for site in SITES for n in range(20)]
    (folder / "sites").mkdir()
    for name, kept in {"requests": SITES, **{f"sites/{site}": (site,) for site in SITES}}.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("message", "queue", "site"), *(row for row in rows if row[2] in kept)])


def write_chats(folder: Path) -> None:
    folder.mkdir()
    for site in SITES:
        chats = [
            [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]
            for n in range(20)
        ]
        text = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
        (folder / f"{site}.jsonl").write_text(text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("place", range(4), ids=["column", "files", "images", "chats"])
def test_a_row_of_the_table(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tiny_encoder: Path, tiny_vision: Callable[[str], Path], tiny_language: Callable[..., Path],
    paint: Callable[..., bytes],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path)
    write_chats(tmp_path / "chats")
    for site in SITES:
        for hue in ("amber", "green"):
            (tmp_path / "photos" / site / hue).mkdir(parents=True)
            for n in range(10):
                (tmp_path / "photos" / site / hue / f"{n}.png").write_bytes(paint(hue, n))
    small = (tiny_encoder, tiny_encoder, tiny_vision("vit"), tiny_language("llama", chat=True))[place]
    lines = table()
    assert len(lines) == 4
    words = shlex.split(lines[place])[1:]
    found = call(capsys, monkeypatch, *words, "--model", small, "--rounds", 1, "--rank", 4, *ALLOW, "--dry-run")
    assert found.code == 0, found.err
    assert all(site in found.out for site in SITES)
