"""The end of a run as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trifed.runner import RunResult

CONTROLS = {
    "probe-alone": "probe, own data",
    "probe-all": "probe, all data",
    "class-means": "class means",
    "majority": "own majority",
}


def size(count: float) -> str:
    """Bytes for people: 3.3 KB, 12.4 MB."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def percent(value: float | None) -> str:
    """Accuracy with one decimal; a dash where there is nothing to measure."""
    return "-" if value is None else f"{100 * value:.1f}"


def render_result(result: RunResult) -> RenderableType:
    """Clients, methods side by side, controls, and what was sent."""
    return Group(_clients(result), _overview(result), *map(Text, _verdict(result)))


def _clients(result: RunResult) -> Table:
    """One row a client: examples, accuracy before, now, and under each baseline."""
    split = {client["name"]: client for client in result.split["clients"]}
    table = Table(title="Test accuracy of each client's own model, %", title_justify="left")
    table.add_column("client", overflow="fold")
    for column in ("train", "test", "before", result.summary["method"], *result.baselines):
        table.add_column(column, justify="right")
    others = [{c["name"]: c for c in b.summary["clients"]} for b in result.baselines.values()]
    for client in result.summary["clients"]:
        name = client["name"]
        row = [str(split[name]["train"]), str(split[name]["test"]), percent(_accuracy(client["before"]))]
        row += [percent(_accuracy(client["now"]))]
        row += [percent(_accuracy(other[name]["now"])) for other in others]
        table.add_row(Text(name), *row)
    return table


def _accuracy(scores: dict[str, Any] | None) -> float | None:
    return None if scores is None else scores["accuracy"]


def _overview(result: RunResult) -> Table:
    """One row a method or control: mean, worst, best, bytes."""
    table = Table(title="Side by side", title_justify="left")
    table.add_column("method")
    for column in ("mean", "worst", "best", "sent up", "sent down", "one upload"):
        table.add_column(column, justify="right")
    for summary in [result.summary, *(b.summary for b in result.baselines.values())]:
        spread, sent = summary["accuracy"], summary["bytes"]
        table.add_row(
            summary["method"],
            *(percent(spread[name]) for name in ("mean", "worst", "best")),
            *(size(sent[name]) for name in ("up", "down", "per_upload")),
        )
    for name, spread in result.summary["controls"].items():
        numbers = (percent(spread[key]) for key in ("mean", "worst", "best"))
        table.add_row(f"[dim]{CONTROLS[name]}[/dim]", *numbers, "", "", "")
    return table


def _verdict(result: RunResult) -> list[str]:
    """Bytes against plain federated LoRA, and the gain over training alone where that was measured."""
    sent = result.summary["bytes"]
    lines = []
    if sent["total"] and sent["times_fewer"] < 1.05:  # as much as plain federated LoRA: nothing to compare
        lines.append(f"{result.summary['method']} sent {size(sent['total'])} in all.")
    elif sent["total"]:
        lines.append(
            f"{result.summary['method']} sent {size(sent['total'])} in all, summaries counted; for the same "
            f"rounds fedavg-lora would send {size(sent['fedavg_lora_would_send'])}, "
            f"{sent['times_fewer']:.0f} times as much."
        )
    alone = result.baselines.get("local")
    if alone is not None:
        gain = 100 * (result.accuracy["mean"] - alone.accuracy["mean"])
        better = sum(
            mine["now"]["accuracy"] > theirs["now"]["accuracy"]
            for mine, theirs in zip(result.summary["clients"], alone.summary["clients"], strict=True)
            if mine["now"] and mine["now"]["accuracy"] is not None
        )
        lines.append(
            f"Against training alone: {gain:+.1f} points in the mean; better for {better} of "
            f"{len(result.summary['clients'])} clients. One seed: a few points are noise."
        )
    return lines
