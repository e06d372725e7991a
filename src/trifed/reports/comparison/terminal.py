"""A comparison in the terminal: how far it is, and its table."""

from __future__ import annotations

import time
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from trifed.reports.format import CONTROLS, percent, size


class CompareWatch:
    """Listens to a comparison: one bar in a terminal, a line a finished run everywhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.fields[phase]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: Any = None
        self.began, self.first = time.monotonic(), 0

    def __enter__(self) -> CompareWatch:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event."""
        kind = event["event"]
        if kind == "phase":
            self._phase(event)
        elif kind == "job":
            self._job(event)
        elif self.task is not None:
            running = (f"{job} {number}/{job.config.rounds}" for job, number in event["running"])
            self.bar.update(self.task, description="; ".join(running))

    def _phase(self, event: dict[str, Any]) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.began, self.first = time.monotonic(), event["done"]
        self.task = self.bar.add_task(
            "", total=event["all"], completed=event["done"], phase=event["phase"], left=""
        )
        self.say(f"{event['phase']}: {event['all'] - event['done']} of {event['all']} runs to do")

    def _job(self, event: dict[str, Any]) -> None:
        spent = time.monotonic() - self.began
        left = spent / (event["done"] - self.first) * (event["all"] - event["done"])
        clock = f"left {int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d}"
        self.bar.update(self.task, completed=event["done"], left=clock)
        place = f"{event['done']}/{event['all']}"
        rate = f"rate {event['job'].config.training.learning_rate:g}"
        self.say(
            f"{place}  {event['job']}  {rate}  mean {percent(event['mean'])}  {event['seconds']:.0f} s  {clock}"
        )

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=not self.console.is_terminal)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.stop()


def render_comparison(data: dict[str, Any]) -> RenderableType:
    """What comparison.json holds: two tables a partition, and what is missing."""
    parts: list[RenderableType] = []
    for name, found in data["results"].items():
        # Side by side where the terminal is wide enough: no number may fall off its edge.
        parts += [Columns([_accuracy(name, found), _traffic(found)]), Text(_differences(found))]
    parts += [Text(line) for line in _missing(data["missing"])]
    return Group(*parts)


def _accuracy(name: str, found: dict[str, Any]) -> Table:
    table = Table(
        title=f"{name}: test accuracy, %, clients {len(found['clients'])}, seeds {len(found['seeds'])}",
        title_justify="left",
    )
    _columns(table, "method", "rate", "mean ± s.d.", "95 %", "worst", "best")
    best = max(m["mean"] for m in found["methods"].values())
    for method, m in found["methods"].items():
        deviation = "" if m["sd"] is None else f" ± {percent(m['sd'])}"
        mean = percent(m["mean"]) + deviation
        style = "bold" if m["mean"] == best else ""
        table.add_row(method, f"{m['learning_rate']:g}", mean, *_interval_and_ends(m), style=style)
    table.add_section()
    for control, c in found["controls"].items():
        table.add_row(CONTROLS[control], "", percent(c["mean"]), *_interval_and_ends(c), style="dim")
    return table


def _traffic(found: dict[str, Any]) -> Table:
    table = Table(title="What a client sends and receives, and how long a run took", title_justify="left")
    target = f"to {percent(found['target'])} %"
    _columns(table, "method", "up", "down", "once", target, "min")
    for method, m in found["methods"].items():
        sent = m["bytes"]
        counts = (sent["up_per_round"], sent["down_per_round"], sent["once_up"] + sent["once_down"])
        reached = "-" if m["bytes_to_target"] is None else size(m["bytes_to_target"])
        table.add_row(method, *(size(c) if c else "-" for c in counts), reached, f"{m['seconds'] / 60:.1f}")
    return table


def _columns(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)


def _interval_and_ends(spread: dict[str, Any]) -> tuple[str, str, str]:
    return " to ".join(map(percent, spread["interval"])), percent(spread["worst"]), percent(spread["best"])


def _differences(found: dict[str, Any]) -> str:
    lines = ["Points, paired (95 %):"]
    for name, d in found["differences"].items():
        low, high = (100 * end for end in d["interval"])
        clear = "" if low <= 0 <= high else "  *"
        lines.append(f"  {name}: {100 * d['mean']:+.1f} ({low:+.1f} to {high:+.1f}){clear}")
    rising = [method for method, m in found["methods"].items() if m["plateau"]["reached"] is False]
    if rising:
        lines.append(f"Still rising in the last quarter of the rounds: {', '.join(rising)}.")
    return "\n".join(
        [
            *lines,
            "up, down: a client and round; once: before round 1; to …: what all send until the mean is there;",
            "a star: 0 is outside.",
        ]
    )


def _missing(missing: list[dict[str, Any]]) -> list[str]:
    if not missing:
        return []
    lines = [f"{len(missing)} runs are missing; the same command runs them:"]
    lines += [f"  {m['partition']} · {m['method']} · seed {m['seed']}: {m['state']}" for m in missing[:8]]
    return lines + ([f"  and {len(missing) - 8} more"] if len(missing) > 8 else [])
