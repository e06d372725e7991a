"""Progress of long work: a bar in a terminal, and lines of text where a run or a comparison is followed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from trifed.common.console import PlainConsole
from trifed.config.run import RunConfig
from trifed.data import render_split, render_split_text
from trifed.federation.events import LINES as RUN_LINES
from trifed.federation.results import spread
from trifed.federation.run_folder import Event
from trifed.reports.format import clock, percent, plural, size

LINES = {
    "trouble": "{text}",
    "diverged": "{client}: training diverges in round {round}, loss {loss:.3g}; lower training.learning_rate",
    "warned": "{client}: {text}",
    **{name: RUN_LINES[name] for name in ("no sum", "ended early", "kept round")},
    "generating": "generating answers: {client}, {examples} test examples",
    "closing": "measuring the controls, writing the clients' adapters",
}
"""Event of a run → the line that is printed for it."""

PATIENCE = 20.0
"""Seconds after which lines of text give an estimate before the first round ends."""
BURST = 1.0
"""Seconds within which clients that trained together are reported."""


@contextmanager
def counting(what: str, total: int | None, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, in a terminal only; yields a function that takes how many more items are done.

    Args:
        what: Text beside the bar.
        total: Number of items; None if unknown.
        hidden: True to show nothing, because results are printed meanwhile.
    """
    console = PlainConsole(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden or not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a spinner on standard error, in a terminal only."""
    with PlainConsole(stderr=True).status(what):
        yield


def has_bars(console: Console) -> bool:
    """Return True where a bar can be drawn: in a terminal, and in a notebook with ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class _TimeLeft(ProgressColumn):
    """The time until a task's field `ends`, which is counted down between two events."""

    def render(self, task: Task) -> Text:
        """Render the time, or a dash while it is unknown."""
        ends = task.fields.get("ends")
        text = "-:--" if ends is None else clock(max(0.0, ends - time.monotonic()))
        return Text(text, style="progress.remaining")


class _Watch:
    """A bar, where one can be drawn, and lines of text."""

    def __init__(self, console: Console, *columns: ProgressColumn, expand: bool = False) -> None:
        self.console = console
        self.has_bar = has_bars(console)
        self.task: Any = None
        self.progress = Progress(
            *columns, console=console, expand=expand, transient=True, disable=not self.has_bar
        )

    def _start(self, description: str, total: int, done: int, **fields: Any) -> None:
        """Replace the bar, and start the clock."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.total, self.first, self.began = total, done, time.monotonic()
        self.progress.start()
        self.task = self.progress.add_task(description, total=total, completed=done, **fields)

    def _seconds_left(self, done: float) -> float | None:
        """Return the estimated time until the end; None before anything is done."""
        spent = time.monotonic() - self.began
        return spent / (done - self.first) * (self.total - done) if done > self.first else None

    def _time_left(self, done: float) -> str:
        seconds = self._seconds_left(done)
        return "" if seconds is None else f"left {clock(seconds)}"

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=not self.console.is_terminal)

    def close(self) -> None:
        """Remove the bar."""
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
        self.progress.stop()


class Watch(_Watch):
    """A listener to a run's events: a bar where one can be drawn, else a line for each round."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        # Fixed widths first: what follows then moves nothing, and a narrow terminal cuts the client's name.
        bar = BarColumn(bar_width=None, table_column=Column(width=16))
        left = _TimeLeft(table_column=Column(width=7, no_wrap=True))
        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
        super().__init__(console, bar, left, text, expand=True)
        self.rounds = config.rounds
        self.methods = [config.method.name, *(config.with_baselines().baselines or ())]
        self.participation = config.participation
        self.sent = 0
        self._split_is_shown = False

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self.sent += sum(sum((event.get(direction) or {}).values()) for direction in ("up", "down"))
        if event["event"] in LINES:
            self.say(LINES[event["event"]].format(**event))
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _on_split(self, event: Event) -> None:
        if not self._split_is_shown and self.has_bar:
            self.console.print(render_split(event["data"]))
        elif not self._split_is_shown:
            self.say(render_split_text(event["data"]))
        self._split_is_shown = True

    def _on_loading(self, event: Event) -> None:
        if not self._split_is_shown or event["what"] != "data":
            self.say(f"reading {event['what']}")

    def _on_started(self, event: Event) -> None:
        self.method, self.evaluated_model, self.clients = event["method"], event["scored"], len(event["clients"])
        self.selected = max(1, round(self.participation * self.clients))
        self.round, self.sent = event.get("round", 0), event.get("sent") or 0
        self.losses: list[float] = []
        self.accuracies: list[float | None] = []
        self.mean: float | None = None
        self.worst: float | None = None
        self.told = self.scored = self.round  # the last round with a line, and with scores
        self._has_estimate = False
        self._trained = 0, 0.0  # clients of this round, and when the last of them came
        self._start("starting", self.rounds, self.round)
        place = f" ({self.methods.index(self.method) + 1} of {len(self.methods)})" if self.methods[1:] else ""
        begins = f"{self.clients} clients, {self.rounds} rounds"
        resumes = f"going on after round {self.round} of {self.rounds}"
        self.say(f"{self.method}{place}: {resumes if event['event'] == 'resumed' else begins}")

    _on_resumed = _on_started

    def _on_summary(self, event: Event) -> None:
        self.began = time.monotonic()  # what comes before the first round tells nothing of how long a round takes

    _on_opening = _on_summary

    def _on_trained(self, event: Event) -> None:
        if event["round"] != self.round:
            self._tell_round()
            self.round, self.losses = event["round"], []
        self._estimate()
        self.losses.append(event["loss"])
        self._trained = len(self.losses), time.monotonic()
        self._move(self.round - 1 + min(1.0, len(self.losses) / self.selected), f"  {event['client']}")

    def _estimate(self) -> None:
        """Say in the first round, where there is no bar and it takes long, how much time is left.

        Clients that trained together come together: they count when the next ones come.
        """
        count, when = self._trained
        now, spent = time.monotonic(), when - self.began
        if self.has_bar or self._has_estimate or spent < PATIENCE or now - when < BURST:
            return
        self._has_estimate = True
        share = count / self.selected
        if self.round == self.first + 1 and 0 < share < 1:
            left = clock(max(0.0, spent / share * (self.total - self.first) - (now - self.began)))
            clients = f"{count} of {plural(self.selected, 'client')}"
            self.say(f"{self.method}  round {self.round}/{self.rounds}  {clients}  left {left}")

    def _on_scores(self, event: Event) -> None:
        if not event["round"]:
            self.began = time.monotonic()
        if event["stage"] != self.evaluated_model or not event["round"]:
            return
        self.accuracies.append(event["test"]["accuracy"])
        if len(self.accuracies) < self.clients:
            return
        found = spread(self.accuracies, [1] * self.clients)
        self.mean, self.worst, self.accuracies = found["mean"], found["worst"], []
        self.scored = self.round
        self._move(self.round, "")
        self._tell_round()

    def _tell_round(self) -> None:
        if self.told < self.round and not self.has_bar:
            self.told = self.round
            self.say(f"{self._state()}  {self._time_left(self.round)}")

    def _on_finished(self, event: Event) -> None:
        self.close()
        if self.has_bar:
            self.say(self._state())

    def _loss(self) -> str:
        return f"{np.mean(self.losses):.3f}" if self.losses else "-"

    def _state(self) -> str:
        """Return round, loss, accuracy and bytes so far as one line."""
        accuracy = f"accuracy {percent(self.mean)} (worst {percent(self.worst)})  "
        return (
            f"{self.method}  round {self.round}/{self.rounds}  loss {self._loss()}  "
            f"{accuracy if self.scored == self.round else ''}up and down {size(self.sent)}"
        )

    def _move(self, completed: float, client: str) -> None:
        accuracy = f"acc {percent(self.mean)}  {size(self.sent)}"
        text = f"{self.method} {self.round}/{self.rounds}  loss {self._loss()}  {accuracy}{client}"
        left = self._seconds_left(completed)
        ends = None if left is None else time.monotonic() + left
        self.progress.update(self.task, completed=completed, description=text, ends=ends)


class CompareWatch(_Watch):
    """A listener to a comparison: one bar where it can be drawn, and a line for each finished run."""

    def __init__(self, console: Console) -> None:
        phase, left = TextColumn("{task.fields[phase]}", markup=False), TextColumn("{task.fields[left]}")
        running = TextColumn("{task.description}", markup=False)
        super().__init__(console, phase, BarColumn(bar_width=24), MofNCompleteColumn(), left, running)
        self.done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if event["event"] == "phase":
            self.done = event["done"]
            self._start("", event["all"], event["done"], phase=event["phase"], left="")
            self.say(f"{event['phase']}: {event['all'] - event['done']} of {event['all']} runs to do")
        elif event["event"] == "job":
            self.done = event["done"]
            left = self._time_left(event["done"])
            self.progress.update(self.task, completed=event["done"], left=left)
            rate = f"rate {event['job'].config.training.learning_rate:g}"
            numbers = f"mean {percent(event['mean'])}  {event['seconds']:.0f} s"
            self.say(f"{event['done']}/{event['all']}  {event['job']}  {rate}  {numbers}  {left}")
        elif self.task is not None:
            # The final download has the number of one more round.
            running = (
                f"{job}, round {min(number, job.config.rounds)} of {job.config.rounds}"
                for job, number in event["running"]
            )
            parts = sum(min(1.0, number / job.config.rounds) for job, number in event["running"])
            left = self._time_left(self.done + parts)  # also before the first run has ended
            self.progress.update(self.task, description="; ".join(running), left=left)
