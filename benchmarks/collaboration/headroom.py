"""How much of what sharing can give does a method give? Shares of the headroom, with intervals.

    python benchmarks/collaboration/headroom.py [--results screen.json]

For each setting of the file: `local`, the best that a client can do alone (plain LoRA, tri-matrix, frames, or the
probe on frozen features, whichever has the best mean); the oracle (A, B and head within the true groups); and for
every other variant its points over `local` and over the oracle, and the share (variant − local) / (oracle − local)
where the headroom is 2 points or more. Means over clients and seeds, and the same for each seed's worst client.
Where nobody has a partner there is no oracle, and where all are alike it is plain federated averaging.

Intervals (95 %) are percentiles of a bootstrap: seeds are drawn again, and within each seed the clients of each
group, the same for all variants; for worst clients only seeds are. Two variants are compared over the seeds that
both have. The model counted is the one that a client has just trained or the one that comes back, whichever is
better on the validation data of all seeds; own-prior always makes one of both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
Json = dict[str, Any]
Floats = NDArray[np.float64]

ALONE = ("local-lora", "local-tri-matrix", "local-frames")
PROBE, ORACLE = "probe-alone", "oracle"
ENOUGH = 2.0
"""Points of headroom from which on a share of it means something."""
DRAWS = 4000


@dataclass(frozen=True)
class LocatedModel:
    """`scores`: by variant, (seeds, clients), %, NaN for a seed that it lacks; `groups`: (clients,).

    `bytes_up`: of a round, all in.
    """

    scores: dict[str, Floats]
    groups: NDArray[np.int64]
    bytes_up: dict[str, float]


def read(kept: Json) -> LocatedModel:
    """One setting of the file."""
    seeds = [kept["seeds"][seed] for seed in sorted(kept["seeds"], key=int)]
    scores: dict[str, Floats] = {}
    bytes_up: dict[str, float] = {}
    none = [np.nan] * len(kept["groups"])
    for variant in dict.fromkeys(variant for found in seeds for variant in found):
        own = [found[variant] for found in seeds if variant in found]
        bytes_up[variant] = float(own[0]["bytes_up"])
        mean = {stage: sum(facts["valid"][stage] for facts in own) for stage in own[0]["valid"]}
        stage = "between" if "between" in mean else max(mean, key=mean.__getitem__)
        rows = [found[variant]["clients"][stage] if variant in found else none for found in seeds]
        scores[variant] = 100 * np.array(rows, np.float64)
    alone = next(variant for variant in ALONE if variant in scores)
    controls = [found[alone]["controls"] if alone in found else {} for found in seeds]
    for control in controls[0]:
        scores[control] = 100 * np.array([told.get(control, none) for told in controls], np.float64)
    return LocatedModel(scores, np.array(kept["groups"]), bytes_up)


def best_alone(found: LocatedModel) -> str:
    """The name of what a client does best alone."""
    return max((v for v in (*ALONE, PROBE) if v in found.scores), key=lambda v: np.nanmean(found.scores[v]))


def draws(found: LocatedModel, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Seeds, (DRAWS, seeds), and for each a set of clients, (DRAWS, seeds, clients)."""
    seeds, clients = next(iter(found.scores.values())).shape
    drawn = np.zeros((DRAWS, seeds, clients), np.int64)
    for group in np.unique(found.groups):
        members = np.flatnonzero(found.groups == group)
        # Groups of one cannot be drawn again one by one: then all clients together are.
        pool = members if len(members) > 1 else np.arange(clients)
        drawn[:, :, members] = rng.choice(pool, (DRAWS, seeds, len(members)))
    return rng.integers(seeds, size=(DRAWS, seeds)), drawn


def means(scores: Floats, seeds: NDArray[np.int64], clients: NDArray[np.int64]) -> Floats:
    """The mean in each draw, (DRAWS,), NaN where it has no seed that the scores have."""
    drawn = scores[seeds[:, :, None], clients]
    known = (~np.isnan(drawn)).sum((1, 2))
    return np.divide(np.nansum(drawn, axis=(1, 2)), known, out=np.full(len(known), np.nan), where=known > 0)


def interval(values: Floats) -> list[float]:
    """The middle 95 %."""
    return [round(float(edge), 2) for edge in np.nanpercentile(values, [2.5, 97.5])]


def compare(found: LocatedModel) -> Json:
    """What stands in the table, for each variant, mean and worst."""
    rng = np.random.default_rng(0)
    seeds, clients = draws(found, rng)
    local = best_alone(found)
    facts: Json = {"local": local, "variants": {}}
    for variant in found.scores:
        entry: Json = {"bytes_up": found.bytes_up.get(variant)}
        entry["seeds"] = int((~np.isnan(found.scores[variant][:, 0])).sum())
        for kind in ("mean", "worst"):
            # A seed's worst client is one client: all that is left to draw is seeds.
            columns = {name: v if kind == "mean" else v.min(1, keepdims=True) for name, v in found.scores.items()}
            places = clients if kind == "mean" else np.zeros_like(clients[:, :, :1])
            own, base = columns[variant], columns[local]
            part: Json = {"accuracy": round(float(np.nanmean(own)), 2)}
            for other in (name for name in (local, ORACLE) if name in columns):
                less = own - columns[other]
                part[f"over {'local' if other == local else other}"] = difference(less, seeds, places)
            both = ~np.isnan(own - base)
            if ORACLE in columns:
                both &= ~np.isnan(columns[ORACLE])
            entry["paired seeds"] = int(both[:, 0].sum())
            part["paired accuracy"] = round(float(own[both].mean()), 2)
            part["of local"] = round(float(base[both].mean()), 2)
            if ORACLE in columns:
                part["of oracle"] = round(float(columns[ORACLE][both].mean()), 2)
                gain, room = (np.where(both, values - base, np.nan) for values in (own, columns[ORACLE]))
                if np.nanmean(room) >= ENOUGH:
                    ratio = means(gain, seeds, places) / means(room, seeds, places)
                    part["share"] = [round(float(np.nanmean(gain) / np.nanmean(room)), 3), *interval(ratio)]
            entry[kind] = part
        facts["variants"][variant] = entry
    return facts


def difference(less: Floats, seeds: NDArray[np.int64], clients: NDArray[np.int64]) -> list[float]:
    """A mean difference and its interval; `less`: (seeds, clients), NaN where one of both is missing."""
    return [round(float(np.nanmean(less)), 2), *interval(means(less, seeds, clients))]


def line(name: str, entry: Json) -> str:
    """A row of the Markdown table."""
    up = "–" if entry["bytes_up"] is None else f"{entry['bytes_up'] / 1000:.1f} KB"
    cells = [f"`{name}`", str(entry["seeds"]), up]
    for kind in ("mean", "worst"):
        part = entry[kind]
        over = part["over local"]
        cells += [f"{part['accuracy']:.1f}", f"{over[0]:+.1f} ({over[1]:+.1f} to {over[2]:+.1f})"]
        share = part.get("share")
        cells.append(f"{100 * share[0]:.0f} ({100 * share[1]:.0f} to {100 * share[2]:.0f})" if share else "–")
    return "| " + " | ".join(cells) + " |"


def overview(everything: dict[str, Json], methods: Sequence[str]) -> Iterator[str]:
    """One row a setting and method, over the seeds that all sides have: headroom and gain."""
    yield "| setting, seeds | alone | oracle | method | up a round | mean, % | over alone | share, % | the worst |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, facts in everything.items():
        known = facts["variants"]
        for method in (m for m in methods if m in known):
            found, oracle = known[method], known.get(ORACLE)
            mean, worst, share = found["mean"], found["worst"], found["mean"].get("share")
            cells = [
                f"`{name}`, {found['paired seeds']}",
                f"{mean['of local']:.1f}",
                f"{mean['of oracle']:.1f}, {oracle['bytes_up'] / 1000:.0f} KB" if oracle else "–",
                f"`{method}`",
                f"{found['bytes_up'] / 1000:.1f} KB",
                f"{mean['paired accuracy']:.1f}",
                points(mean["over local"]),
                percents(share) if share else "–",
                ", ".join(
                    f"{worst[key]:.0f}" for key in ("of local", "of oracle", "paired accuracy") if key in worst
                ),
            ]
            yield "| " + " | ".join(cells) + " |"


def points(found: list[float]) -> str:
    """A difference and its interval."""
    return f"{found[0]:+.1f} ({found[1]:+.1f} to {found[2]:+.1f})"


def percents(found: list[float]) -> str:
    """A share and its interval."""
    return f"{100 * found[0]:.0f} ({100 * found[1]:.0f} to {100 * found[2]:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "screen.json")
    parser.add_argument("--methods", nargs="+", default=["own-prior", "own-prior-lora"], help="in the last table")
    given = parser.parse_args()
    if not given.results.is_file():
        parser.error(f"--results {given.results}: no such file; screen.py writes it")
    everything = {}
    for setting, kept in json.loads(given.results.read_text()).items():
        facts = everything[setting] = compare(read(kept))
        count = facts["seeds"] = len(kept["seeds"])
        print(f"\n`{setting}`, {count} seed{'s' if count > 1 else ''}, local is `{facts['local']}`\n")
        print("| | seeds | up a round | mean, % | over local | share, % | worst, % | over local | share, % |")
        print("|---|---|---|---|---|---|---|---|---|")
        order = sorted(facts["variants"], key=lambda v: facts["variants"][v]["mean"]["accuracy"])
        print("\n".join(line(name, facts["variants"][name]) for name in order))
    print()
    print("\n".join(overview(everything, given.methods)))


if __name__ == "__main__":
    main()
