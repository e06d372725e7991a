"""Prints results/comparison.json as the Markdown tables of the benchmarks' README.

python benchmarks/methods/table.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "comparison.json"
Json = dict[str, Any]


def table(name: str, found: Json) -> list[str]:
    """One partition: methods, then controls."""
    lines = [
        f"**{name}**",
        "",
        "| method | rate | mean, % (95 %) | less `local` | less `fedavg-lora` | worst | best | KB up | rising |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, m in found["methods"].items():
        gaps = " | ".join(gap(found["differences"], method, other) for other in ("local", "fedavg-lora"))
        up = f"{m['bytes']['up_per_round'] / 1000:,.1f}" if m["bytes"]["up_per_round"] else "0"
        rise = f"{100 * m['plateau']['rise_in_last_quarter']:+.1f}"
        lines.append(
            f"| `{method}` | {m['learning_rate']:g} | {spread(m)} | {gaps} | {_ends(m)} | {up} | {rise} |"
        )
    lines += [f"| *{name}* | | {spread(c)} | | | {_ends(c)} | | |" for name, c in found["controls"].items()]
    return [*lines, ""]


def spread(found: Json) -> str:
    """Mean and interval, in %."""
    low, high = (100 * end for end in found["interval"])
    return f"{100 * found['mean']:.1f} ({low:.1f} to {high:.1f})"


def _ends(found: Json) -> str:
    return f"{100 * found['worst']:.1f} | {100 * found['best']:.1f}"


def gap(differences: Json, method: str, other: str) -> str:
    """How far one method is over another, whichever way round it was kept."""
    if method == other:
        return ""
    found, sign = differences.get(f"{method} minus {other}"), 1
    if found is None:
        found, sign = differences[f"{other} minus {method}"], -1
    return points(sign * found["mean"], [sign * end for end in found["interval"]])


def points(mean: float, interval: Sequence[float]) -> str:
    """A difference and its interval, both as shares, in points."""
    low, high = sorted(100 * end for end in interval)
    return f"{100 * mean:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    state = json.loads(RESULTS.read_text())
    for name in state["partitions"]:
        if name in state["results"]:
            print("\n".join(table(name, state["results"][name])))


if __name__ == "__main__":
    main()
