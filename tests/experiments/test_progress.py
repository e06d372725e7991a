"""The display of a run: time left before the first round ends, and what Python gets without asking."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

import trifed
from trifed.config.run import make_config
from trifed.reports import progress_bar
from trifed.reports.progress_bar import Watch, has_bars

CLIENTS = [f"client-{number}" for number in range(8)]


@pytest.fixture
def clock(monkeypatch):
    """The time that the display reads; a test sets `now`."""
    time = SimpleNamespace(now=1000.0)
    time.monotonic = lambda: time.now
    monkeypatch.setattr(progress_bar, "time", time)
    return time


def watch_of(toy_values, terminal: bool, **changes) -> tuple[Watch, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    return Watch(make_config(toy_values(rounds=5, **changes)), console), text


def begin(watch):
    watch({"event": "started", "method": "own-prior", "scored": "between", "clients": CLIENTS})


def train(watch, count, number=1):
    for client in CLIENTS[:count]:
        watch({"event": "trained", "round": number, "client": client, "loss": 1.0, "up": {}, "down": {}})


def test_time_left_is_known_when_the_first_clients_of_round_1_have_trained(clock, toy_values):
    watch, _ = watch_of(toy_values, True)
    begin(watch)
    clock.now += 500  # before the rounds: the first evaluation, and the summaries
    watch({"event": "scores", "round": 0, "stage": "start", "client": CLIENTS[0]})
    clock.now += 20
    train(watch, 2)
    task = watch.progress.tasks[0]
    # A quarter of the first of five rounds took 20 s: 19 quarters are left.
    assert task.fields["ends"] - clock.now == pytest.approx(20 * 19)
    clock.now += 60
    assert str(progress_bar._TimeLeft().render(task)) == progress_bar.clock(20 * 19 - 60)
    watch.close()


def test_only_the_selected_clients_count(clock, toy_values):
    watch, _ = watch_of(toy_values, True, participation=0.5)
    begin(watch)
    clock.now += 20
    train(watch, 4)
    assert watch.progress.tasks[0].completed == pytest.approx(1.0)
    watch.close()


def test_lines_have_an_estimate_in_round_1_where_it_takes_long(clock, toy_values):
    watch, text = watch_of(toy_values, False)
    begin(watch)
    clock.now += 40
    train(watch, 2)  # they trained together
    assert "left" not in text.getvalue()
    clock.now += 30
    train(watch, 2)
    lines = [line for line in text.getvalue().splitlines() if "left" in line]
    assert len(lines) == 1 and "round 1/5" in lines[0] and "2 of 8 clients" in lines[0]
    # A quarter of the first of five rounds took 40 s: 800 s in all, of which 70 are over.
    assert lines[0].endswith(f"left {progress_bar.clock(730)}")
    quick, text = watch_of(toy_values, False)
    begin(quick)
    train(quick, 3)
    assert "left" not in text.getvalue()


def test_a_notebook_has_a_bar_where_it_can_draw_one(monkeypatch):
    notebook, file = Console(force_jupyter=True), Console(file=io.StringIO())
    for found, bars in ((None, False), (object(), True)):
        monkeypatch.setattr(progress_bar, "find_spec", lambda name, found=found: found)
        assert has_bars(notebook) is bars
        assert not has_bars(file)


def test_python_shows_progress_without_asking(toy_values, tmp_path, capsys):
    config = make_config(toy_values(rounds=2))
    trifed.run(config, tmp_path / "shown")
    said = capsys.readouterr()
    assert said.out == "" and "round 2/2" in said.err
    again = make_config(toy_values(rounds=3))
    trifed.resume(tmp_path / "shown", rounds=again.rounds)
    assert "round 3/3" in capsys.readouterr().err
    events = []
    trifed.run(config, tmp_path / "quiet", quiet=True)
    trifed.run(config, tmp_path / "heard", events.append)
    assert capsys.readouterr() == ("", "")
    assert events[-1]["event"] == "closing"
    trifed.run(config, tmp_path / "both", events.append, quiet=False)
    assert "round 2/2" in capsys.readouterr().err and len(events) > 20


def test_a_comparison_shows_progress_too(compared, compare_values, capsys):
    trifed.compare(trifed.make_comparison(compare_values()), compared[0].path)
    assert "0 of 4 runs to do" in capsys.readouterr().err
    trifed.compare(trifed.make_comparison(compare_values()), compared[0].path, quiet=True)
    assert capsys.readouterr() == ("", "")
