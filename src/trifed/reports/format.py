"""Numbers, lists and names for people."""

from __future__ import annotations

from collections.abc import Sequence

CONTROLS = {
    "probe-alone": "probe, own data",
    "probe-all": "probe, all data",
    "probe-all-prior": "probe, all data, own prior",
    "class-means": "class means",
    "majority": "own majority",
}
MOST_NAMED = 4
"""Things that a sentence names one by one."""


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


def points(value: float | None) -> str:
    """A difference of accuracies with its sign."""
    if value is None:
        return "-"
    shown = round(100 * value, 1)
    return f"{shown:+.1f}".replace("-", "−") if shown else "0.0"


def span(interval: tuple[float, float] | None, signed: bool = False) -> str:
    """`82.0 to 87.3`; a dash where there is none."""
    show = points if signed else percent
    return "-" if interval is None else f"{show(interval[0])} to {show(interval[1])}"


def control_label(name: str) -> str:
    """A control's short name."""
    return CONTROLS.get(name, name)


def plural(count: int, noun: str) -> str:
    """`1 client`, `10 clients`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def few(items: Sequence[str]) -> list[str]:
    """The first of them, and how many more there are."""
    if len(items) <= MOST_NAMED:
        return list(items)
    return [*items[: MOST_NAMED - 1], f"{len(items) - MOST_NAMED + 1} others"]


def listing(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return ", ".join(items[:-1]) + f" and {items[-1]}" if len(items) > 1 else "".join(items)
