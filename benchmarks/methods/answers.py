"""Keeps which test rows each run of the comparison got right, to set a later method against them in pairs.

    python benchmarks/methods/answers.py --work DIR

Reads the run folders that `bench.py` left under --work and adds to results/answers.json: partition → method → seed
→ client → how many test rows, a colon, and a bit for each in order, first row highest, as hexadecimal digits.
Beside it stands the hash of the split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "answers.json"


def right(folder: Path) -> dict[str, str]:
    """Of one run, by client."""
    kept = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    return {
        name: f"{len(labels)}:{np.packbits(np.array(kept['model'][name]) == np.array(labels)).tobytes().hex()}"
        for name, labels in kept["labels"].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/methods"), help="where bench.py keeps its runs")
    given = parser.parse_args()
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for path in sorted(given.work.glob("*/runs/all/*/seed-*/predictions.json")):
        partition, method, seed = path.parts[-6], path.parts[-3], path.parts[-2].removeprefix("seed-")
        known = found.setdefault(partition, {"splits": {}, "methods": {}})
        split = json.loads((path.parent / "split.json").read_text(encoding="utf-8"))
        known["splits"][seed] = split["content_hash"]
        known["methods"].setdefault(method, {})[seed] = right(path.parent)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for partition, known in found.items():
        print(f"{partition}: {len(known['methods'])} methods, seeds {', '.join(known['splits'])}")


if __name__ == "__main__":
    main()
