"""Format numbers, lists and names for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

CONTROLS = {
    "probe-alone": "probe, own data",
    "probe-all": "probe, all data",
    "probe-all-prior": "probe, all data, own prior",
    "class-means": "class means",
    "majority": "own majority",
}
CONTROL_MEANINGS = {
    "probe-alone": "a logistic regression on the frozen base model's features, with the client's own data",
    "probe-all": "the same with the data of all clients together, which a federation may not do",
    "probe-all-prior": "that one with each client's own label shares",
    "class-means": "the nearest mean of a class over all clients, sent once",
    "majority": "the client's most frequent label, whatever the input is",
}
"""Controls of a result: what each of them is, after its short name."""
MOST_NAMED = 4
"""The most items that a sentence names one by one."""


def size(count: float) -> str:
    """Format bytes: 3.3 KB, 12.4 MB."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def percent(value: float | None) -> str:
    """Format a share in [0, 1] as a percentage with one decimal; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Format a difference of shares as percentage points with a sign; a dash for None."""
    if value is None:
        return "-"
    shown = round(100 * value, 1)
    return f"{shown:+.1f}".replace("-", "−") if shown else "0.0"


def span(interval: tuple[float, float] | None, signed: bool = False) -> str:
    """Format an interval of shares: `82.0 to 87.3`; a dash for None."""
    show = points if signed else percent
    return "-" if interval is None else f"{show(interval[0])} to {show(interval[1])}"


def control_label(name: str) -> str:
    """Return a control's short name."""
    return CONTROLS.get(name, name)


def control_meanings(names: Iterable[str]) -> str:
    """Return one sentence about controls: what each of them is; empty without any."""
    known = [f"({control_label(name)}): {CONTROL_MEANINGS[name]}" for name in names if name in CONTROL_MEANINGS]
    return f"Controls, which train no adapter: {'; '.join(known)}." if known else ""


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: `1 client`, `10 clients`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listing(items: Sequence[str]) -> str:
    """Join names: `a`, `a and b`, `a, b and c`; the first three and a count where there are more than four."""
    if len(items) > MOST_NAMED:
        items = [*items[: MOST_NAMED - 1], f"{len(items) - MOST_NAMED + 1} others"]
    return ", ".join(items[:-1]) + f" and {items[-1]}" if len(items) > 1 else "".join(items)


def clock(seconds: float) -> str:
    """Format a duration: `3:07`, `1:03:07`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
