"""Which labels should the prior of `own-prior` count, and how smooth should it be?

    python benchmarks/collaboration/priors.py --work DIR [--settings NAME ...] [--seeds 1 2]

Scores runs that `screen.py` keeps under --work again, under other priors: training does not change, so that all
rules are compared on the very same models. A rule's log prior replaces the one that training began with in the
head's bias; then the head is tempered on validation data as always. Mean test accuracy over clients, %, by
setting, seed and rule, goes to priors.json (--out).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

from trifed.config.run import make_config
from trifed.config.toml_files import read_toml
from trifed.federation.client_update import score
from trifed.federation.personalization import calibrate
from trifed.federation.preparation import prepare, quiet
from trifed.federation.run_folder import RunFolder
from trifed.federation.simulation import Simulation
from trifed.federation.training.evaluation import embed

sys.path.insert(0, str(Path(__file__).parent))
from digest import chosen, conditions
from groups import SETTINGS
from screen import VARIANTS
from variants import register

HERE = Path(__file__).parent
Counts = NDArray[np.float64]
BEGUN = 0.1
"""Examples that `own-prior` adds to those of every label."""


def concentration(counts: Counts, centre: Counts) -> float:
    """κ of the Dirichlet prior κ · `centre` under which `counts`, (clients, labels), are likeliest."""

    def loss(log_k: float) -> float:
        a, n = np.exp(log_k) * centre, counts.sum(1)
        each = gammaln(a.sum()) - gammaln(n + a.sum()) + (gammaln(counts + a) - gammaln(a)).sum(1)
        return -float(each.sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 9), method="bounded").x))


def fitted(own: Counts, everybody: Counts, centre: Counts) -> Counts:
    """`own` counts with those added that a Dirichlet prior fitted to `everybody`'s says."""
    return own + concentration(everybody, centre) * centre


def even(labels: int) -> Counts:
    return np.full(labels, 1 / labels)


Rule = Callable[[Counts, Counts, Counts], Counts]
RULES: dict[str, Rule] = {  # of a client's training and validation counts, and of everybody's training counts
    "training": lambda n, v, all_: n + BEGUN,
    "training and validation": lambda n, v, all_: n + v + BEGUN,
    "training, 0.5 more a label": lambda n, v, all_: n + 0.5,
    "training, 1 more a label": lambda n, v, all_: n + 1.0,
    "training, even prior fitted to it": lambda n, v, all_: fitted(n, n[None], even(len(n))),
    "training, pooled prior fitted to all": lambda n, v, all_: fitted(
        n, all_, (all_.sum(0) + BEGUN) / (all_ + BEGUN / len(all_)).sum()
    ),
}


def rescored(folder: Path) -> dict[str, float]:
    """By rule the mean test accuracy of one run, %."""
    config = make_config(read_toml(folder / "config.toml"))
    data, bench, clients = prepare(config)
    run = Simulation(config, data, clients, bench, RunFolder.open(folder), quiet)
    kept = run.folder.load_checkpoint(run.identity, cut=False)
    if kept is None:
        raise SystemExit(f"{folder}: no checkpoint; screen.py makes it")
    run.restore(kept[1], kept[2])
    labels = len(data.label_names)
    counts = [
        [np.bincount(part.labels, minlength=labels).astype(np.float64) for part in (c.train, c.valid)]
        for c in clients
    ]
    everybody = np.stack([train for train, _ in counts])
    found: dict[str, list[float]] = {rule: [] for rule in RULES}
    for site, (train, valid) in zip(run.clients, counts, strict=True):
        client = site.dataset
        model = site.personalization.model("interpolated", site.state.tensors, run.server.arrives(client.index))
        bench.load(model)
        features = embed(bench.model, client.valid, config.training)
        for name, rule in RULES.items():
            prior = rule(train, valid, everybody)
            log_prior = torch.from_numpy(np.log(prior / prior.sum())).float()
            bias = model["head.bias"] - site.local_init["head.bias"] + log_prior
            used = calibrate(bench, {**model, "head.bias": bias}, features, client.valid.labels)
            found[name].append(score(bench, used, client.test, config.training).accuracy)
    return {name: round(100 * float(np.mean(values)), 2) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/collaboration"), help="of screen.py")
    parser.add_argument("--out", type=Path, default=HERE / "priors.json")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    given = parser.parse_args()
    register(VARIANTS)
    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.is_file() else {}
    for setting in given.settings:
        for seed in given.seeds:
            rate = chosen(given.work, setting, [seed]).get("own-prior")
            if rate is None:
                parser.error(f"{given.work}: no finished run of own-prior on {setting}, seed {seed}")
            found = rescored(given.work / f"{setting}-{seed}" / f"own-prior@{rate:g}")
            kept = result.setdefault(setting, {"an example": conditions(given.work, setting, seed), "seeds": {}})
            kept["seeds"][str(seed)] = {"rate": rate, **found}
            given.out.write_text(json.dumps(result, indent=1) + "\n")
            print(setting, seed, found, flush=True)
    print("\n| | " + " | ".join(f"`{setting}`" for setting in result) + " |\n|---|" + "---|" * len(result))
    for rule in RULES:
        cells = [f"{np.mean([seed[rule] for seed in kept['seeds'].values()]):.1f}" for kept in result.values()]
        print(f"| {rule} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
