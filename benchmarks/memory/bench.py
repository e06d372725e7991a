"""What a client costs in memory: the peak of a whole run with 50 clients against one with 2.

    python benchmarks/memory/bench.py [--rounds 2]

The same 1,700 examples, split evenly; one base model is shared, so only tensors and optimiser states of the
clients add up. Each run is a process of its own and reports its own peak resident set, as the system counts it.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COUNTS = (2, 50)
METHODS = ("ce-lora", "fedavg-lora")


def one(clients: int, method: str, rounds: int) -> None:
    """One run; prints this process's peak in MiB."""
    from trifed import make_config, run
    from trifed.data import demo_corpus_path

    config = make_config(
        {
            "rounds": rounds,
            "controls": False,
            "baselines": [],
            "method": method,
            "model": {"name": "demo", "max_length": 64},
            "data": {"source": str(demo_corpus_path()), "clients": {"split": "iid", "count": clients}},
            "training": {"batch_size": 16, "steps": 2},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        run(config, Path(folder) / "run")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak / (1024 * 1024 if platform.system() == "Darwin" else 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(int(given.one[0]), given.one[1], given.rounds)
        return
    result: dict[str, object] = {"python": platform.python_version(), "rounds": given.rounds}
    for method in METHODS:
        peaks = {}
        for count in COUNTS:
            command = [sys.executable, __file__, "--one", str(count), method, "--rounds", str(given.rounds)]
            peaks[count] = float(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
            )
        result[method] = {
            "peak_mib": {str(count): round(peak) for count, peak in peaks.items()},
            "ratio": round(peaks[COUNTS[1]] / peaks[COUNTS[0]], 3),
        }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
