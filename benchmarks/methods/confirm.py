"""Does a later method hold on clients that nobody saw while it was made? New seeds, beside the strongest rivals.

    python benchmarks/methods/confirm.py METHOD --data DIR [--seeds 2] [--rivals local pfedme-lora]

Partitions, conditions and learning rates are those of `bench.py` and `later.py`; only the seeds are new, and with
them the cut of the data and the start. Writes results/METHOD-confirmed.json; goes on where it was broken off.
"""

from __future__ import annotations

import json
from typing import Any

from bench import HERE, PARTITIONS, SHARED_PROJECTIONS, arguments, carry_out, settings, tuned_on
from table import points

from trifed.common.dict_merge import deep_merge

Json = dict[str, Any]


def main() -> None:
    parser = arguments(__doc__, "runs/methods-confirmed")
    parser.add_argument("method")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2])
    parser.add_argument("--rivals", nargs="+", default=["local", "pfedme-lora"])
    given = parser.parse_args()
    path = HERE / "results" / f"{given.method}-confirmed.json"
    state: Json = json.loads(path.read_text()) if path.is_file() else {"results": {}, "configuration": {}}
    wanted = (given.seeds, [*given.rivals, given.method])
    for partition, found in state["results"].items():
        if wanted != (found["seeds"], list(found["methods"])):
            parser.error(
                f"{path} holds seeds {found['seeds']} of {', '.join(found['methods'])} for {partition}; give the "
                f"same --seeds and --rivals to go on with it, or move it away"
            )
    measured = {
        name: json.loads((HERE / "results" / f"{name}.json").read_text())["tuning"]
        for name in ("comparison", given.method)
    }
    for partition in [name for name in PARTITIONS if name not in state["results"]]:
        methods = [*given.rivals, given.method]
        rates = {}
        for method in methods:
            tuning = measured[given.method if method == given.method else "comparison"][tuned_on(partition)]
            rates[method] = {"training": {"learning_rate": tuning["methods"][method]["chosen"]}}
        values: Json = {
            "name": partition,
            "methods": methods,
            "seeds": given.seeds,
            "references": given.rivals,
            "run": settings(given.data, partition),
            "method_settings": deep_merge(
                rates, {name: SHARED_PROJECTIONS[name] for name in methods if name in SHARED_PROJECTIONS}
            ),
        }
        found = carry_out(values, given.work, given.jobs)
        state["results"][partition] = found["results"]["all"]
        state["configuration"][partition] = {**values, "run": settings("DIR", partition)}
        state["environment"] = found["environment"]
        path.write_text(json.dumps(state, indent=1) + "\n")
    print("\n".join(table(state["results"], given.method, given.rivals)))


def table(results: Json, method: str, rivals: list[str]) -> list[str]:
    """By partition: means, and the method's paired differences."""
    lines = [
        f"| partition | {' | '.join(f'`{name}`' for name in [*rivals, method])} "
        f"| {' | '.join(f'less `{name}`' for name in rivals)} |",
        "|---" * (2 + 2 * len(rivals)) + "|",
    ]
    for partition, found in results.items():
        means = [f"{100 * found['methods'][name]['mean']:.1f}" for name in [*rivals, method]]
        gaps = [found["differences"][f"{method} minus {name}"] for name in rivals]
        shown = [points(gap["mean"], gap["interval"]) for gap in gaps]
        lines.append(f"| {' | '.join([partition, *means, *shown])} |")
    return lines


if __name__ == "__main__":
    main()
