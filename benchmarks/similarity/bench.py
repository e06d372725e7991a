"""Which measure of data similarity finds the clients that belong together? On planted groups, so it is known.

    python benchmarks/similarity/bench.py --data DIR [--seeds 3]

For each setting of `benchmarks/collaboration/groups.py`: features of the frozen base (MiniLM, mean-pooled) of
every client's examples, each measure's distances between clients, and how well these part pairs inside a group
from pairs across (AUC, 1 is perfect and .5 is guessing) and give the groups back (adjusted Rand index after
average-linkage clustering into the true number of groups; the ratio also without that number, cut at 2). Features
are kept under --work. Results go to results.json beside this file, and a table is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from trifed import make_config, similarity
from trifed.data import Examples, text_examples
from trifed.federation.preparation import environment
from trifed.federation.training.shared_model import build_shared_model
from trifed.methods import METHODS
from trifed.tasks.text_classification import load_encoder

sys.path.insert(0, str(Path(__file__).parents[1] / "collaboration"))
from groups import SETTINGS, plant

HERE = Path(__file__).parent
GROUPED = ("tasks", "domains", "intents", "topics")
EXAMPLES = (48, 200)
ALIKE_BELOW = 2.0
"""Twice the noise between two samples of one distribution."""

Matrix = NDArray[np.float64]
Clients = list[tuple[Matrix, NDArray[np.int64]]]


def features(data: Path, work: Path, setting: str, seed: int) -> tuple[Clients, NDArray[np.int64]]:
    """Frozen features (n, d) and labels (n,) of every client, and the clients' groups."""
    path = work / f"{setting}-{seed}.npz"
    if not path.is_file():
        table = plant(setting, data, max(EXAMPLES), seed)
        labels = np.unique(table["label"], return_inverse=True)[1].astype(np.int64)
        clients = np.unique(table["client"], return_inverse=True)[1]
        groups = table.groupby("client")["group"].first().sort_index().to_numpy(np.int64)
        examples = text_examples(list(table["text"]), None, labels)
        work.mkdir(parents=True, exist_ok=True)
        np.savez(path, x=embed(examples), y=labels, client=clients, groups=groups)
    kept = np.load(path)
    rows = [kept["client"] == client for client in range(len(kept["groups"]))]
    return [(kept["x"][r], kept["y"][r]) for r in rows], kept["groups"]


def shared_model() -> tuple[Any, Any, Any]:
    """The frozen base, its loader's result, and the configuration that stands in the results."""
    config = make_config({"model": {"name": "demo", "max_length": 64}, "data": {"source": "-"}, "method": "local"})
    base = load_encoder(config.model.name)
    parts = (config.model, config.adapter, config.training)
    return build_shared_model(base, METHODS["local"], 2, 0, parts), base, config


def embed(examples: Examples) -> NDArray[np.float32]:
    bench, _, config = shared_model()
    found: NDArray[np.float32] = bench.base_features(bench.encode(examples), config.training)
    return found


def measures(clients: Clients) -> Mapping[str, Matrix]:
    """Distances between all pairs of clients, (n_clients, n_clients), by the name of the measure."""
    found: dict[str, Matrix] = {}
    for dim in (16, 64, 256):
        projected = [similarity.project(x, dim=dim, seed=1) for x, _ in clients]
        for pooled in (False, True):
            for components in (1, 3):
                summaries = [
                    similarity.summarise(x, 0 * y if pooled else y, max_components=components, seed=place)
                    for place, (x, (_, y)) in enumerate(zip(projected, clients, strict=True))
                ]
                distances = similarity.pairwise_distances(summaries)
                floor = np.array([summary.self_distance for summary in summaries])
                name = f"{'pooled' if pooled else 'by class'}, {components} components, d' = {dim}"
                found[name] = distances
                found[f"{name}, less noise floor"] = similarity.denoise(distances, floor)
                if not pooled and components == 1:
                    moments = similarity.pooled_moments(summaries)
                    found[f"means, d' = {dim}"] = ((moments[0][:, None] - moments[0][None]) ** 2).sum(-1)
                    found[f"two-sample ratio, d' = {dim}"] = similarity.two_sample_ratio(*moments)
    summaries = [
        similarity.summarise(similarity.project(x, dim=64, seed=1), y, max_components=1, seed=place)
        for place, (x, y) in enumerate(clients)
    ]
    # Where two clients share no label nothing speaks against them: 1, what noise explains.
    found["shared-label ratio, d' = 64"] = np.nan_to_num(similarity.shared_label_ratio(summaries), nan=1.0)
    counts = np.stack([np.bincount(y, minlength=1 + max(v.max() for _, v in clients)) for _, y in clients])
    sizes = counts.sum(1)
    shares = counts / sizes[:, None]
    spreads = (1 - (shares**2).sum(1)) * sizes / (sizes - 1)
    found["label counts, two-sample ratio"] = similarity.two_sample_ratio(shares, spreads, sizes)
    return found


def judge(distances: Matrix, groups: NDArray[np.int64]) -> dict[str, float]:
    one, other = np.triu_indices(len(groups), 1)
    clusters = AgglomerativeClustering(len(np.unique(groups)), metric="precomputed", linkage="average")
    return {
        "auc": float(roc_auc_score(groups[one] == groups[other], -distances[one, other])),
        "rand": float(adjusted_rand_score(groups, clusters.fit_predict(distances))),
    }


def cut(ratio: Matrix) -> NDArray[np.int64]:
    """Groups without knowing how many: average linkage up to the threshold."""
    cutting = AgglomerativeClustering(
        None, metric="precomputed", linkage="average", distance_threshold=ALIKE_BELOW
    )
    return np.asarray(cutting.fit_predict(ratio), np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, default=Path("runs/similarity"))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    judged: dict[str, Any] = {}
    cuts: dict[str, Any] = {}
    for setting in SETTINGS:
        for seed in range(given.seeds):
            clients, groups = features(given.data, given.work, setting, seed)
            for n in EXAMPLES:
                found = measures([(x[:n], y[:n]) for x, y in clients])
                ratio = cut(found["two-sample ratio, d' = 64"])
                kept = cuts.setdefault(setting, {}).setdefault(str(n), {"groups": [], "true": [], "rand": []})
                kept["groups"].append(len(np.unique(ratio)))
                kept["true"].append(len(np.unique(groups)))
                kept["rand"].append(round(float(adjusted_rand_score(groups, ratio)), 3))
                if setting not in GROUPED:
                    continue
                for name, distances in found.items():
                    for key, value in judge(distances, groups).items():
                        place = judged.setdefault(name, {}).setdefault(f"{setting}, {n} examples", {})
                        place.setdefault(key, []).append(round(value, 3))
            print(f"{setting}, seed {seed}", flush=True)
    bench, base, config = shared_model()
    result = {
        "environment": environment(config, base, bench),
        "seeds": list(range(given.seeds)),
        "measures": judged,
        "two-sample ratio cut at 2": cuts,
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """AUC and Rand index, means over seeds, as Markdown."""
    columns = [f"{setting}, {n} examples" for n in EXAMPLES for setting in GROUPED]
    lines = ["| measure | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, found in result["measures"].items():
        cells = [f"{np.mean(found[c]['auc']):.2f} / {np.mean(found[c]['rand']):.2f}" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| setting | examples | groups | found | Rand index |", "|---|---|---|---|---|"]
    for setting, by_size in result["two-sample ratio cut at 2"].items():
        for n, kept in by_size.items():
            found = ", ".join(map(str, kept["groups"]))
            lines.append(f"| {setting} | {n} | {kept['true'][0]} | {found} | {np.mean(kept['rand']):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
