"""Which measure of model similarity finds the clients that belong together, and after how many rounds?

    python benchmarks/similarity/over_rounds.py --data DIR [--settings NAME ...] [--seeds N ...]

Clients in planted groups train three kinds of adapter, everybody alone or from everybody's mean; what they would
send is kept after every round of `ROUNDS`. Each measure is applied to the change since the common start and to
the change within the round, and judged as in `bench.py`: AUC of pairs inside a group against pairs across, and the
adjusted Rand index of clusters in the true number. Heads stay at home. Runs and tensors are kept under --work;
results go to over_rounds.json beside this file, and a table is printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "collaboration"))
from bench import GROUPED, judge
from screen import conditions, configuration, table
from variants import GroupOptions, Variant, grouping, mean_of_the_group

from trifed import similarity
from trifed.common.dict_merge import deep_merge
from trifed.methods import METHODS, Method, ServerContext, State, Upload
from trifed.methods.base import Options
from trifed.methods.packing import unpack

HERE = Path(__file__).parent
Json = dict[str, Any]
Arrays = NDArray[np.float64]
ROUNDS = (1, 2, 4, 8, 16)

ADAPTERS: dict[str, tuple[Variant, float]] = {
    "tri-matrix": (Variant("tri-matrix", ("C",)), 3e-3),
    "frames": (Variant("public-frames", ("C",), own={"adapter": {"rank": 32, "alpha": 32}}), 1e-2),
    "lora": (Variant("lora", ("A", "B")), 3e-3),
}
"""And the learning rate that the screen of collaboration found best alone."""
FROM = ("alone", "all")
"""What a round starts from: what the client had, or everybody's mean."""


class KeepOptions(GroupOptions):
    """`keep`: the folder that gets one file a round."""

    keep: str


def aggregate_and_keep(options: Options, setting: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """As in the collaboration benchmark; what came up, and what had gone down, is written to a file."""
    came = np.stack([upload.values for upload in sorted(uploads, key=lambda upload: upload.client)])
    went = state["mixed"] if "mixed" in state else np.tile(setting.start, (setting.clients, 1))
    number = uploads[0].round
    if number in ROUNDS:
        folder = Path(cast(KeepOptions, options).keep)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{kind} {name}": np.stack([unpack(row.astype(np.float32), setting.layout)[name] for row in change])
            for kind, change in (("start", came - setting.start), ("round", came - went))
            for name, _ in setting.layout
        }
        np.savez(folder / f"{number}.npz", **tensors)
    return mean_of_the_group(options, setting, state, uploads)


def method(name: str) -> Method:
    """The adapter's variant, keeping what travels."""
    return replace(ADAPTERS[name][0].method(f"keep-{name}"), options=KeepOptions, aggregate=aggregate_and_keep)


def jobs(given: argparse.Namespace) -> Iterator[tuple[Path, Json]]:
    """Folder and settings of each run."""
    for seed in given.seeds:
        for setting in given.settings:
            source, groups = table(setting, seed, given.data, given.work)
            for name, (variant, rate) in ADAPTERS.items():
                for kind in FROM:
                    folder = given.work / f"{setting}-{seed}" / f"{name}-{kind}"
                    values = configuration(setting, "oracle", rate, seed, source, groups)
                    values = deep_merge(
                        values, {**variant.own, "rounds": max(ROUNDS), "evaluate_every": max(ROUNDS)}
                    )
                    keep = str(folder / "sent")
                    values["method"] = {"name": f"keep-{name}", "keep": keep, **grouping(kind, groups)}
                    yield folder, values


def one(job: tuple[Path, Json]) -> str:
    """Carry out one run in this process; a line about it."""
    from trifed import make_config, resume, run

    METHODS.update({f"keep-{name}": method(name) for name in ADAPTERS})
    folder, values = job
    done = resume(folder) if (folder / "config.toml").is_file() else run(make_config(values), folder)
    return f"{folder.parent.name} {folder.name}: {done.summary['seconds_total']:.0f} s"


def overlap(change: Arrays) -> Arrays:
    """Mean cos² of the principal angles between top singular subspaces, a quarter of the rank: (N, N).

    `change`: (N, L, m, n), m ≤ n; the subspaces are those of its rows.
    """
    rows = np.linalg.svd(change, full_matrices=False)[2][..., : max(1, change.shape[2] // 4), :]
    products = np.einsum("ilka,jlma->ijlkm", rows, rows)
    found: Arrays = (products**2).sum((3, 4)).mean(2) / rows.shape[2]
    return found


MEASURES: dict[str, Callable[[Arrays], Arrays]] = {
    "cosine": similarity.cosine,
    "CKA, debiased, outputs as examples": similarity.linear_cka,
    "CKA, debiased, inputs as examples": lambda x: similarity.linear_cka(x, examples="columns"),
    "CKA, biased, outputs as examples": lambda x: similarity.linear_cka(x, debiased=False),
    "principal angles": overlap,
}


def judged(folder: Path, groups: NDArray[np.int64]) -> Iterator[tuple[str, str, str, int, dict[str, float]]]:
    """Part that travels, since when, measure, round, and how well the groups are found."""
    for number in ROUNDS:
        with np.load(folder / "sent" / f"{number}.npz") as kept:
            for since in ("start", "round"):
                for part in "ABC":
                    names = [n for n in kept if n.startswith(f"{since} ") and f".lora_{part}." in n]
                    if not names:
                        continue
                    change = np.stack([kept[name] for name in names], axis=1).astype(np.float64)
                    if part == "B":
                        change = change.swapaxes(2, 3)  # (r, d): a Gram matrix of r × r is enough
                    for name, measure in MEASURES.items():
                        if part != "C" and "inputs" in name:
                            continue
                        yield part, since, name, number, judge(1.0 - measure(change), groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/similarity"))
    parser.add_argument("--settings", nargs="+", choices=GROUPED, default=list(GROUPED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    given.work = given.work.resolve()
    found = list(jobs(given))
    waiting = [job for job in found if not (job[0] / "summary.json").is_file()]
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // given.jobs))
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        for place, future in enumerate(as_completed([pool.submit(one, job) for job in waiting]), 1):
            print(f"{place}/{len(waiting)}  {future.result()}", flush=True)
    measures: Json = {}
    for folder, values in found:
        setting = folder.parent.name.rsplit("-", 1)[0]
        groups = np.array(table(setting, values["seed"], given.data, given.work)[1])
        adapter, kind = folder.name.rsplit("-", 1)
        for part, since, measure, number, score in judged(folder, groups):
            row = measures.setdefault(f"{adapter}, {part}, {kind}, since {since}, {measure}", {})
            for key, value in score.items():
                row.setdefault(setting, {}).setdefault(str(number), {}).setdefault(key, []).append(round(value, 3))
    first = found[0][0].parent
    result = {
        "an example": conditions(given.work, *_split(first.name)),
        "rounds": ROUNDS,
        "seeds": given.seeds,
        "measures": measures,
    }
    (HERE / "over_rounds.json").write_text(json.dumps(result, indent=1) + "\n")
    print(report(measures, given.settings))


def _split(name: str) -> tuple[str, int]:
    setting, seed = name.rsplit("-", 1)
    return setting, int(seed)


def report(measures: Json, settings: Sequence[str]) -> str:
    """AUC / Rand index after the first and the last round kept, means over seeds, as Markdown."""
    shown = (str(ROUNDS[0]), str(ROUNDS[2]), str(ROUNDS[-1]))
    lines = ["| | " + " | ".join(f"{s}, round {', '.join(shown)}" for s in settings) + " |"]
    lines.append("|---|" + "---|" * len(settings))
    for name, row in measures.items():
        cells = [", ".join(f"{np.mean(row[s][r]['auc']):.2f}" for r in shown) for s in settings]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
