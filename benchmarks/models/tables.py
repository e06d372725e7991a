"""Prints results/families.json as Markdown tables.

python benchmarks/models/tables.py [families.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from table import gap, spread

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
        gaps = " | ".join(gap(found["differences"], method, other) for other in ("local", "fedavg-lora"))
        said = _bits(bits[method], method) if bits else ""
        lines.append(
            f"| `{method}` | {one['learning_rate']:g} | {spread(one)} | {gaps} | {100 * one['worst']:.1f} | "
            f"{100 * one['best']:.1f} | {one['bytes']['up_per_round'] / 1000:.1f} {said}|"
        )
    for control, one in found["controls"].items():
        lines.append(
            f"| *{control}* | | {spread(one)} | | | {100 * one['worst']:.1f} | {100 * one['best']:.1f} | |"
        )
    if bits:
        lines.append(f"| *before* | | | | | | | | {bits['local']['before']:.2f} | |")
    return [*lines, ""]


def _bits(found: Json, method: str) -> str:
    low, high = found["interval"]
    less, (down, up) = found["less local"]["mean"], found["less local"]["interval"]
    against = "" if method == "local" else f"{less:+.3f} ({down:+.3f} to {up:+.3f})"
    return f"| {found['mean']:.3f} ({low:.3f} to {high:.3f}) | {against} "


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    for name, kept in json.loads(path.read_text()).items():
        print("\n".join(table(name, kept)))


if __name__ == "__main__":
    main()
