"""Prints the tables that stand in README.md and on the pages, from committed JSON files; nothing is trained.

    python benchmarks/pages.py [PAGE ...]

A test compares each page with what is printed here. A table whose numbers changed is pasted into its page again.
Tables that are not listed here are printed by the script beside their results, as `README.md` in this folder says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import paper
from figures import SIX, THREE, script
from paper import difference, read, row

Json = dict[str, Any]
OWN_PRIOR = "benchmarks/methods/results/own-prior.json"
NAMES = {
    "banking77-dirichlet-0.5": "BANKING77, Dirichlet 0.5",
    "clinc150-domain": "CLINC150, by domain",
    "sst2-dirichlet-0.5": "SST-2, Dirichlet 0.5",
    "qnli-dirichlet-1.0": "QNLI, Dirichlet 1",
    "mrpc-dirichlet-1.0": "MRPC, Dirichlet 1",
    "agnews-pathological-2": "AG News, two topics each",
}


def six_data_sets() -> Iterator[tuple[str, Json, str, Json, Json]]:
    """Name, rivals, best rival, `own-prior` and its differences, for each data set."""
    rivals, ours = read(SIX)["results"], read(OWN_PRIOR)["results"]
    for partition, name in NAMES.items():
        methods = rivals[partition]["methods"]
        best = max(methods, key=lambda method: methods[method]["mean"])
        yield name, methods, best, ours[partition]["methods"]["own-prior"], ours[partition]["differences"]


def points(found: Json) -> str:
    low, high = (100 * end for end in found["interval"])
    return f"{100 * found['mean']:+.1f} ({low:+.1f} to {high:+.1f})"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


FRONT_PAGE = {
    "clear gain": ("banking77-few", "BANKING77 (bank questions), 48"),
    "level": ("banking77", "the same, 400"),
    "no clear gain": ("sentiment-domains", "opinions, three domains, 400"),
}
"""Rows of the README's table: outcome -> set of the comparison at equal bits, and what it is there."""
EQUAL_BITS = ("banking77-few", "banking77", "sst2", "sentiment-domains")
"""Sets of the comparison at equal bits on the page of results."""


RIVAL, LOW_RANK = "fedavg-lora", "fedavg-lora, rank 2"


def equal(name: str) -> tuple[list[str], list[str], str]:
    """Means of the better arm that sends nothing, of both ranks of the rival and of `own-prior`, over the seeds of
    all four; what `own-prior` has more than each of these three; KB up of the three that send."""
    tables = script("evidence/tables.py")
    held, ours = tables.Held(name, tables.results(name)), tables.DEFAULT
    alone, sending = held.better([arm for arm in tables.ALONE if arm in held.runs]), (RIVAL, LOW_RANK, ours)
    seeds = held.seeds(alone, *sending)
    means = [held.unit(held.mean(arm, "mean", seeds)) for arm in (alone, *sending)]
    gaps = [held.points(held.difference(ours, other, seeds)) for other in (alone, RIVAL, LOW_RANK)]
    sent = [f"{tables.kilobytes_up(held.runs[arm][seeds[0]]):.1f}" for arm in sending]
    return [f"{means[0]} `{alone}`", *means[1:]], gaps, " / ".join(sent)


def front_page() -> Iterator[str]:
    """Three outcomes at equal bits and parts."""
    for outcome, (name, shown) in FRONT_PAGE.items():
        (alone, *means), gaps, sent = equal(name)
        yield row(outcome, shown, alone.split()[0], *means, *gaps[:2], sent)


def equal_bits() -> Iterator[str]:
    """The same for all sets that have these arms."""
    for name in EQUAL_BITS:
        means, gaps, sent = equal(name)
        yield row(name, *means, *gaps, sent)


def equal_paper() -> Iterator[str]:
    """The paper's three methods at equal bits and parts, over the seeds that all three have."""
    tables = script("evidence/tables.py")
    for name in ("sst2", CHANGES_ON):
        held = tables.Held(name, tables.results(name))
        seeds = held.seeds(*paper.METHODS)
        means = [held.unit(held.mean(arm, "mean", seeds)) for arm in paper.METHODS]
        gaps = [held.points(held.difference("ce-lora", other, seeds)) for other in ("local", RIVAL)]
        sent = (f"{tables.kilobytes_up(held.runs[arm][seeds[0]]):.1f}" for arm in (RIVAL, "ce-lora"))
        yield row(name, *means, *gaps, " / ".join(sent))


CHANGES_ON = "banking77-few"
"""The set on which one part of a method was changed at a time."""


def changed(tier: str, name: str = CHANGES_ON) -> Iterator[str]:
    """A method, and what each change of a tier makes of it: mean, and what is gained or lost."""
    tables = script("evidence/tables.py")
    held = tables.Held(name, tables.results(name))
    base, arms = tables.CHANGED[tier]
    shown = [base, *(arm for arm in arms if arm in held.runs)]
    seeds = held.seeds(*shown)
    for arm in shown:
        label = f"`{arm}`" if arm == base else arm
        gap = held.points(held.difference(arm, base, seeds))
        yield row(label, held.unit(held.mean(arm, "mean", seeds)), gap or "–")


def authors() -> Iterator[str]:
    """`ce-lora` with one setting of its authors' client at a time."""
    yield from changed("authors")


def weights() -> Iterator[str]:
    """`ce-lora` with other weights in a client's average."""
    yield from changed("weights")


def ablations() -> Iterator[str]:
    """`own-prior` with one part changed."""
    yield from changed("ablations")


def results() -> Iterator[str]:
    """All methods on six data sets."""
    for name, methods, best, ours, gaps in six_data_sets():
        local, lora, ce = (percent(methods[method]["mean"]) for method in paper.METHODS)
        sent = f"{ours['bytes']['up_per_round'] / 1000:.1f} / {methods[best]['bytes']['up_per_round'] / 1000:.0f}"
        rival, mine = percent(methods[best]["mean"]), percent(ours["mean"])
        if ours["mean"] > methods[best]["mean"]:
            mine = f"**{mine}**"
        else:
            rival = f"**{rival}**"
        yield row(
            name, local, lora, ce, f"{rival} `{best}`", mine, points(gaps["local"]), points(gaps[best]), sent
        )


def own_prior() -> Iterator[str]:
    """Planted groups, then priors."""
    headroom = script("collaboration/headroom.py")
    groups = {
        "intents": "three mixes of 77 intents",
        "domains": "four domains",
        "topics": "three mixes of four topics",
        "tasks": "four tasks under the same two labels",
    }
    planted = read("benchmarks/collaboration/screen.json")
    for setting, name in groups.items():
        found = headroom.read(planted[setting])
        shown = (headroom.best_alone(found), headroom.ORACLE, "own-prior", "own-prior-lora")
        yield row(name, *(f"{mean_of_known(found.scores[variant]):.1f}" for variant in shown))
    rules = {
        "training": "training labels",
        "training and validation": "**training and validation labels**",
        "training, 0.5 more a label": "training labels, 0.5 examples more a label instead of 0.1",
        "training, 1 more a label": "the same, 1 more",
        "training, even prior fitted to it": "training labels, and an even Dirichlet prior fitted to them",
        "training, pooled prior fitted to all": (
            "training labels, and all clients' mean, as strong as their counts suggest"
        ),
    }
    priors = read("benchmarks/collaboration/priors.json")
    for rule, name in rules.items():
        seeds = ([seed[rule] for seed in kept["seeds"].values()] for kept in priors.values())
        yield row(name, *(f"{sum(values) / len(values):.1f}" for values in seeds))


def mean_of_known(scores: Any) -> float:
    return float(scores[scores == scores].mean())  # NaN, of a seed that a variant lacks, is unequal to itself


def kinds_of_models() -> Iterator[str]:
    """One comparison for each kind of model; images and texts."""
    names = {
        "shakespeare": "stories260K, eight speakers of Shakespeare, bits per byte (less is better)",
        "questions": "stories260K, questions of four kinds, bits per byte of the answer",
        "vit-groups": "a small ViT, CIFAR-10 in three groups of classes, accuracy %",
        "vit-dirichlet-0.5": "the same, CIFAR-10 by Dirichlet 0.5",
        "towers-groups": "that ViT with MiniLM as towers, CIFAR-10 in groups",
        "towers-dirichlet-0.5": "the same, CIFAR-10 by Dirichlet 0.5",
        "captions-groups": "the towers, CIFAR-10 in groups with captions for labels, matching accuracy %",
    }
    methods = ("local", "fedavg-lora", "fedsa-lora", "ce-lora", "own-prior")
    for family, name in names.items():
        kept = read(paper.FAMILIES)[family]
        found, bits = kept["results"]["methods"], kept["bits_per_byte"]
        digits = 3 if family == "questions" else 2
        if bits:
            before = f"{bits['local']['before']:.2f}"
            means = [f"{bits[method]['mean']:.{digits}f}" for method in methods]
        else:
            before = "–" if family.startswith("vit") else percent(found["local"]["curve"][0]["mean"])
            means = [percent(found[method]["mean"]) for method in methods]
        sent = f"{found['own-prior']['bytes']['up_per_round'] / 1000:.1f}"
        yield row(name, before, *means[:-1], f"**{means[-1]}**", sent)


def larger_models() -> Iterator[str]:
    """A model of 7B's shape on a GPU."""
    results = read("benchmarks/large_model/results.json")
    kept, again = results["activations-kept"], results["activations-again"]
    rows = {
        "`fedavg-lora`, rank 8": kept["fedavg-lora"],
        "`ce-lora`, rank 8": kept["ce-lora"],
        "`own-prior`, rank 32": kept["own-prior"],
        "`fedavg-lora`, gradient checkpointing, 10 steps": again["fedavg-lora"],
    }
    for name, found in rows.items():
        ratios = (f"{found[key]:.2f}" for key in ("peak_over_plain", "peak_over_base", "speed_against_plain"))
        yield row(
            name, *ratios, f"{100 * found['switch_share_of_round']:.1f} %", f"{found['trained_parameters']:,}"
        )


def threat_model() -> Iterator[str]:
    """What every attack recovered from texts."""
    from trifed.reports.audit.findings import read_findings

    tables = script("privacy/tables.py")
    whole = {name: read_findings(tables.RESULTS / f"{name}.json") for name in tables.WHOLE}
    yield from only_rows(tables.overview(whole))


def only_rows(lines: Iterator[str] | list[str]) -> Iterator[str]:
    return (line for line in lines if line.startswith("| "))


def all_methods() -> Iterator[str]:
    """Every method on six data sets, then `own-prior` without sharing."""
    table = script("methods/table.py")
    for name, found in read(SIX)["results"].items():
        yield from only_rows(table.table(name, found))
    alone, ours = (
        read(f"benchmarks/methods/results/{name}.json")["results"] for name in ("own-prior-alone", "own-prior")
    )
    for partition, found in alone.items():
        local = read(SIX)["results"][partition]["methods"]["local"]["mean"]
        mine = (one[partition]["methods"]["own-prior"]["mean"] for one in (alone, ours))
        without, with_sharing = map(percent, mine)
        yield row(partition, percent(local), without, points(found["differences"]["local"]), with_sharing)


def new_seed() -> Iterator[str]:
    """`own-prior` on a seed that had not been used before."""
    for partition, found in read("benchmarks/methods/results/own-prior-confirmed.json")["results"].items():
        means = (percent(found["methods"][method]["mean"]) for method in ("local", "pfedme-lora", "own-prior"))
        gaps = (difference(found, "own-prior", other) for other in ("local", "pfedme-lora"))
        yield row(partition, *means, *gaps)


def three_methods() -> Iterator[str]:
    yield from only_rows(script("three_methods/plot.py").table(read(THREE)).splitlines())


def families() -> Iterator[str]:
    tables = script("models/tables.py")
    for name, kept in read(paper.FAMILIES).items():
        yield from only_rows(tables.table(name, kept))


def attacks() -> Iterator[str]:
    """Hostile clients that send minus ten times their change, with and without bounds."""
    cases = read("benchmarks/security/attacks.json")["cases"]

    def mean(defence: str, attack: str, hostile: int) -> str:
        return f"{cases[f'own-prior | {defence} | {attack} | {hostile} of 10 | seed 0 | 4 rounds']['mean']:.1f}"

    both = "median and worse_by 0.5"
    names = {
        "sign flip x1": "minus its change",
        "constant 1": "a constant",
        "noise x10": "noise of ten times the size",
        "1e9 examples": "noise, with a claim of 10⁹ examples",
        "copied summary": "another's summary, and minus ten times its change",
        "label flip": "wrong labels in its data",
        "backdoor": "a backdoor in its data",
    }
    for attack, name in names.items():
        yield row(name, "–", "–", mean(both, attack, 1), mean(both, attack, 3))


PAGES: dict[str, tuple[Callable[[], Iterator[str]], ...]] = {
    "README.md": (front_page,),
    "docs/results.md": (equal_bits, results),
    "docs/own-prior.md": (own_prior, ablations),
    "docs/equations.md": (authors,),
    "docs/what-was-recovered.md": (threat_model,),
    "docs/security-measured.md": (attacks,),
    "docs/paper.md": (*paper.TABLES.values(), equal_paper, weights),
    "benchmarks/methods/README.md": (all_methods, new_seed),
    "benchmarks/three_methods/README.md": (three_methods,),
    "benchmarks/models/README.md": (kinds_of_models, families),
    "benchmarks/large_model/README.md": (larger_models,),
}
"""Page -> functions that return lines of its tables."""


def main() -> None:
    for page in sys.argv[1:] or PAGES:
        if page not in PAGES:
            raise SystemExit(f"got '{page}', expected one of {', '.join(PAGES)}")
        print(f"\n{page}\n")
        for lines in PAGES[page]:
            print("\n".join(lines()), end="\n\n")


if __name__ == "__main__":
    main()
