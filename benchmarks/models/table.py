"""Prints results/families.json as Markdown tables.

python benchmarks/models/table.py [families.json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "families.json"
Json = dict[str, Any]


def table(name: str, kept: Json) -> list[str]:
    """One partition: methods, then controls."""
    found, bits = kept["results"], kept["bits_per_byte"]
    more = "| bits per byte (95 %) | less `local` " if bits else ""
    lines = [
        f"**{name}**, {found['metric']}, {len(found['clients'])} clients, seeds {found['seeds']}",
        "",
        f"| | rate | mean, % (95 %) | less `local` | less `fedavg-lora` | worst | best | KB up {more}|",
        f"|{'---|' * (8 + 2 * bool(bits))}",
    ]
    for method, one in found["methods"].items():
        gaps = " | ".join(_gap(found["differences"], method, other) for other in ("local", "fedavg-lora"))
        said = _bits(bits[method], method) if bits else ""
        lines.append(
            f"| `{method}` | {one['learning_rate']:g} | {_spread(one)} | {gaps} | {100 * one['worst']:.1f} | "
            f"{100 * one['best']:.1f} | {one['bytes']['up_per_round'] / 1000:.1f} {said}|"
        )
    for control, one in found["controls"].items():
        lines.append(
            f"| *{control}* | | {_spread(one)} | | | {100 * one['worst']:.1f} | {100 * one['best']:.1f} | |"
        )
    if bits:
        lines.append(f"| *before* | | | | | | | | {bits['local']['before']:.2f} | |")
    return [*lines, ""]


def _spread(found: Json) -> str:
    low, high = (100 * end for end in found["interval"])
    return f"{100 * found['mean']:.1f} ({low:.1f} to {high:.1f})"


def _gap(differences: Json, method: str, other: str) -> str:
    if method == other:
        return ""
    found, sign = differences.get(f"{method} minus {other}"), 100
    if found is None:
        found, sign = differences[f"{other} minus {method}"], -100
    return _with(sign * found["mean"], [sign * end for end in found["interval"]], ".1f")


def _bits(found: Json, method: str) -> str:
    low, high = found["interval"]
    less = found["less local"]
    gap = "" if method == "local" else _with(less["mean"], less["interval"], ".3f")
    return f"| {found['mean']:.3f} ({low:.3f} to {high:.3f}) | {gap} "


def _with(mean: float, interval: Sequence[float], shape: str) -> str:
    low, high = sorted(interval)
    return f"{mean:+{shape}} ({low:+{shape}} to {high:+{shape}})"


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    for name, kept in json.loads(path.read_text()).items():
        print("\n".join(table(name, kept)))


if __name__ == "__main__":
    main()
