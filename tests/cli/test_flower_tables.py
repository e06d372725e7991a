"""The table of what left a site, as a terminal of 80 columns shows it."""

from __future__ import annotations

from rich.console import Console

from trifed.cli.flower_tables import render_releases
from trifed.deployment.release_log import Part, Release


def shown(*releases: Release) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render_releases(releases))
    return capture.get().splitlines()


def test_each_run_has_a_table_in_which_time_and_numbers_are_whole():
    upload = {"upload": Part(2512, ["core", "head"])}
    first = Release(
        "2026-03-01T12:00:20+00:00", "tickets-1f2e3d4c", 1, "train", {"loss": 0.41331}, upload, None, 1.93
    )
    second = Release("2026-03-02T08:00:00+00:00", "claims-5a6b7c8d", 2, "train", {}, upload)
    lines = shown(first, second)
    assert max(map(len, lines)) <= 80
    heads = [line.strip() for line in lines if line.strip() in ("tickets-1f2e3d4c", "claims-5a6b7c8d")]
    assert heads == ["tickets-1f2e3d4c", "claims-5a6b7c8d"]
    (row,) = [line for line in lines if "2026-03-01 12:00:20" in line]
    assert "2,512" in row and "1.93" in row
    assert sum("ε so far" in line for line in lines) == 1  # only where there is a ledger
    assert lines[-1].strip() == "2 replies, 5,024 bytes in messages"


def test_a_refusal_and_a_reply_without_content_are_told():
    refused = Release("2026-03-01T12:00:20+00:00", "tickets", 1, "evaluate", error="few_tokens")
    empty = Release("2026-03-01T12:01:00+00:00", "tickets", 1, "finish")
    text = "\n".join(shown(refused, empty))
    assert "refused: few_tokens" in text and "nothing but 'done'" in text
