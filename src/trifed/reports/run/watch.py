"""Display of a run under way: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from trifed.config.run import RunConfig
from trifed.data import render_split, render_split_text
from trifed.federation.run_folder import Event
from trifed.reports.format import clock, percent, size


class Watch:
    """A listener to a run's events: a bar in a terminal, else a line for each scored round."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self.rounds, self.console = config.rounds, console
        self.methods = [config.method.name, *config.baselines]
        self.method, self.evaluated_model, self.clients = "", "", 1
        self.round, self.sent = 0, 0
        self._split_is_shown = False
        self.task: Any = None
        self.progress = Progress(
            # Fixed widths first: what follows then moves nothing, and a narrow terminal cuts the client's name.
            BarColumn(bar_width=None, table_column=Column(width=16)),
            TimeRemainingColumn(table_column=Column(width=7, no_wrap=True)),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            expand=True,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __call__(self, event: Event) -> None:
        """Take one event."""
        handler = getattr(self, "_on_" + event["event"].replace("-", "_"), None)
        for way in ("up", "down"):
            self.sent += sum((event.get(way) or {}).values())
        if handler is not None:
            handler(event)

    def _on_split(self, event: Event) -> None:
        if not self._split_is_shown:
            if self.console.is_terminal:
                self.console.print(render_split(event["data"]))
            else:
                self.say(render_split_text(event["data"]))
            self._split_is_shown = True

    def _on_loading(self, event: Event) -> None:
        if not self._split_is_shown or event["what"] != "data":
            self.say(f"reading {event['what']}")

    def _on_started(self, event: Event) -> None:
        self._begin(event, 0, 0)
        self.say(f"{self._place()}: {self.clients} clients, {self.rounds} rounds")

    def _on_resumed(self, event: Event) -> None:
        self._begin(event, event["round"], event["sent"])
        self.say(f"{self._place()}: going on after round {event['round']} of {self.rounds}")

    def _place(self) -> str:
        """Return the method and its place among the run and its baselines."""
        if len(self.methods) == 1:
            return self.method
        return f"{self.method} ({self.methods.index(self.method) + 1} of {len(self.methods)})"

    def _begin(self, event: Event, done: int, sent: int) -> None:
        self.method, self.evaluated_model, self.clients = event["method"], event["scored"], len(event["clients"])
        self.round, self.first, self.sent = done, done, sent
        self.losses: list[float] = []
        self.accuracies: list[float | None] = []
        self.mean: float | None = None
        self.worst: float | None = None
        self.began = time.monotonic()
        self.progress.start()
        self.task = self.progress.add_task("starting", total=self.rounds, completed=done)

    def _on_trained(self, event: Event) -> None:
        if event["round"] != self.round:
            self.round, self.losses = event["round"], []
        self.losses.append(event["loss"])
        self._move(self.round - 1 + len(self.losses) / max(1, self.clients), f"  {event['client']}")

    def _on_scores(self, event: Event) -> None:
        if event["stage"] != self.evaluated_model or not event["round"]:
            return
        self.accuracies.append(event["test"]["accuracy"])
        if len(self.accuracies) == self.clients:
            known = [accuracy for accuracy in self.accuracies if accuracy is not None and np.isfinite(accuracy)]
            self.mean, self.worst = (float(np.mean(known)), min(known)) if known else (None, None)
            self.accuracies = []
            self.show_round()

    def _on_trouble(self, event: Event) -> None:
        self.say(event["text"])

    def _on_warned(self, event: Event) -> None:
        self.say(f"{event['client']}: {event['text']}")

    def _on_closing(self, event: Event) -> None:
        self.say("measuring the controls, writing the clients' adapters")

    def _loss(self) -> str:
        return f"{np.mean(self.losses):.3f}" if self.losses else "-"

    def state(self) -> str:
        """Return round, loss, accuracy and bytes so far as one line."""
        return (
            f"{self.method}  round {self.round}/{self.rounds}  loss {self._loss()}  accuracy {percent(self.mean)} "
            f"(worst {percent(self.worst)})  sent {size(self.sent)}"
        )

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=not self.console.is_terminal)

    def show_round(self) -> None:
        """Move the bar to the end of a scored round, or print the state and the time that is left."""
        self._move(self.round, "")
        if not self.console.is_terminal:
            spent = time.monotonic() - self.began
            left = spent / max(1, self.round - self.first) * (self.rounds - self.round)
            self.say(f"{self.state()}  left {clock(left)}")

    def _move(self, completed: float, client: str) -> None:
        accuracy = f"acc {percent(self.mean)}  {size(self.sent)}"
        text = f"{self.method} {self.round}/{self.rounds}  loss {self._loss()}  {accuracy}{client}"
        self.progress.update(self.task, completed=completed, description=text)

    def _on_finished(self, event: Event) -> None:
        self.close()
        if self.console.is_terminal:
            self.say(self.state())

    def close(self) -> None:
        """Remove the bar."""
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
        self.progress.stop()
