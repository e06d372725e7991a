"""A comparison in the terminal: its progress, and its tables."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from trifed.reports.comparison.tables import difference_table, main_table
from trifed.reports.comparison.verdict import cautions, verdict
from trifed.reports.format import clock, percent
from trifed.reports.results import Source, Study
from trifed.reports.tables import to_terminal

ACCURACY = ("method", "learning_rate", "mean", "sd", "interval", "worst", "best")
SENT = ("method", "up_per_round", "down_per_round", "once_up", "once_down", "bytes_to_target", "seconds")
MOST_MISSING = 8


class CompareWatch:
    """A listener to a comparison: one bar in a terminal, and a line for each finished run."""

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
        left = f"left {clock(spent / (event['done'] - self.first) * (event['all'] - event['done']))}"
        self.bar.update(self.task, completed=event["done"], left=left)
        rate = f"rate {event['job'].config.training.learning_rate:g}"
        numbers = f"mean {percent(event['mean'])}  {event['seconds']:.0f} s"
        self.say(f"{event['done']}/{event['all']}  {event['job']}  {rate}  {numbers}  {left}")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=not self.console.is_terminal)

    def close(self) -> None:
        """Remove the bar."""
        self.bar.stop()


def render_comparison(data: dict[str, Any]) -> RenderableType:
    """Render the contents of comparison.json: tables and verdict of each partition, and the missing runs."""
    study = Study.model_validate(data)
    parts: list[RenderableType] = []
    for name, partition in study.results.items():
        seeds = f"clients {len(partition.clients)}, seeds {len(partition.seeds)}"
        accuracy = main_table({name: partition}).only(*ACCURACY, title=f"{name}: test {partition.metric}, {seeds}")
        sent = main_table({name: partition}, controls=False).only(*SENT, title="What a client sends and receives")
        # Side by side where the terminal is wide enough: no number may fall off its edge.
        parts += [Columns([to_terminal(accuracy.without_empty()), to_terminal(sent.without_empty())])]
        parts += [to_terminal(difference_table(partition)), Text(verdict(partition))]
    parts += [Text(caution.text) for caution in cautions(Source(Path(), "comparison", study, {}))]
    if study.missing:
        parts.append(Text(f"{len(study.missing)} runs are missing; the same command runs them:"))
    runs = [f"  {m.partition} · {m.method} · seed {m.seed}: {m.state}" for m in study.missing]
    more = [f"  and {len(runs) - MOST_MISSING} more"] if len(runs) > MOST_MISSING else []
    return Group(*parts, *map(Text, [*runs[:MOST_MISSING], *more]))
