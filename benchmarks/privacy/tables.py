"""The tables of docs/what-was-recovered.md, from results/*.json, and of docs/noise-details.md, from curve.json.

python benchmarks/privacy/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trifed.reports.audit.findings import Estimate, Findings, Reconstruction, Sees, read_findings

RESULTS = Path(__file__).parent / "results"
WHOLE = ("banking77", "sst2", "cifar10")
ATTACKS = ("span", "matching")
NAMES = {"base": "W₀ alone", "start": "start of A, B", "factors": "A and B"}


def shown(found: Estimate, digits: int = 2) -> str:
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f}–{found.high:.{digits}f})"


def guesses(found: Findings) -> list[Reconstruction]:
    """Those on all trials last."""
    return sorted((row for row in found.reconstruction if row.attack == "guesser"), key=lambda row: row.trials)


def best(found: Findings, rows: list[Reconstruction], score: str) -> Reconstruction:
    """The best, of those on fewer trials only where it lies above guessing on the same."""
    guessed = {(r.batch, r.trials): r.scores[score].high for r in guesses(found)}
    whole = max(row.trials for row in rows)
    fair = [r for r in rows if r.trials == whole or r.scores[score].low > guessed.get((r.batch, r.trials), 1e9)]
    return max(fair, key=lambda row: row.scores[score].mean)


def back(found: Findings, sees: Sees) -> Iterator[str]:
    """By method and knowledge, the best attack at each batch size."""
    score, digits = ("f1", 2) if found.kind == "text" else ("psnr", 1)
    sizes = sorted({row.batch for row in found.reconstruction})
    yield "| method | knows | " + " | ".join(f"batch {size}" for size in sizes) + " |"
    yield "|---|---|" + "---|" * len(sizes)
    free = [row for row in found.reconstruction if row.attack == "embedding" and row.sees == sees]
    rows = [row for row in found.reconstruction if row.sees == sees and row.attack in ATTACKS]
    lines = [(f"`{name}`", NAMES[knows], [r for r in rows if r.method == name and r.knows == knows])
             for name in dict.fromkeys(row.method for row in rows) for knows in NAMES]  # fmt: skip
    lines += [("`fedavg-full`, embedding's gradient", "all", free)]
    lines += [("guesser", "nothing", [row for row in found.reconstruction if row.attack == "guesser"])]
    for name, knows, own in lines:
        if own:
            cells = [[row for row in own if row.batch == size] for size in sizes]
            texts = [shown(best(found, cell, score).scores[score], digits) if cell else "–" for cell in cells]
            yield f"| {name} | {knows} | " + " | ".join(texts) + " |"


def members(found: Findings) -> Iterator[str]:
    yield "| method | from | knows | examples in it | AUC | found at 1 % false, % |"
    yield "|---|---|---|---|---|---|"
    for row in found.membership:
        yield (
            f"| `{row.method}` | {row.source} | {NAMES[row.knows]} | {row.examples:.0f} | {shown(row.auc)} | "
            f"{100 * row.tpr.mean:.0f} |"
        )


def labels(found: Findings) -> Iterator[str]:
    sizes = sorted({row.batch for row in found.labels})
    yield "| method | sees | " + " | ".join(f"batch {size}" for size in sizes) + " |"
    yield "|---|---|" + "---|" * len(sizes)
    for method, sees in dict.fromkeys((row.method, row.sees) for row in found.labels):
        own = {row.batch: row for row in found.labels if (row.method, row.sees) == (method, sees)}
        yield f"| `{method}` | {sees} | " + " | ".join(shown(own[size].f1) for size in sizes if size in own) + " |"
    guesses = {row.batch: row.guesser for row in found.labels}
    yield "| guesser | nothing | " + " | ".join(shown(guesses[size]) for size in sizes) + " |"


def overview(whole: dict[str, Findings]) -> Iterator[str]:
    """One row a method and knowledge: what stands in docs/what-was-recovered.md."""
    texts = {name: found for name, found in whole.items() if found.kind == "text"}
    for name, found in texts.items():
        yield f"\n{name}:\n"
        heads = ["a text's gradient", "of 2", "of 8", "a round on 1", "on 8", "who took part, AUC", "labels of 8"]
        yield "| method | knows | " + " | ".join(heads) + " |"
        yield "|---|---|" + "---|" * len(heads)
        for method in (found.method, *found.controls):
            for knows in NAMES:
                yield from _overview_row(found, method, knows)
        guess = {row.batch: row.scores["f1"] for row in guesses(found)}
        of = {row.batch: row.guesser for row in found.labels}
        cells = [shown(guess[size]) for size in (1, 2, 8, 1, 8)] + ["0.50", shown(of[8]) if 8 in of else "–"]
        yield "| guesser | nothing | " + " | ".join(cells) + " |"


def _overview_row(found: Findings, method: str, knows: str) -> Iterator[str]:
    rows = [r for r in found.reconstruction if r.method == method and r.knows == knows and r.attack in ATTACKS]
    if not rows:
        return
    cells = []
    for sees, size in (("gradient", 1), ("gradient", 2), ("gradient", 8), ("update", 1), ("update", 8)):
        here = [row for row in rows if (row.sees, row.batch) == (sees, size)]
        cells.append(shown(best(found, here, "f1").scores["f1"]) if here else "–")
    auc = [r.auc for r in found.membership if (r.method, r.knows, r.source) == (method, knows, "update")]
    told = [r.f1 for r in found.labels if (r.method, r.sees, r.batch) == (method, "update", 8)]
    cells += [shown(auc[0]) if auc else "–", shown(told[0]) if told else "head not sent"]
    yield f"| `{method}` | {NAMES[knows]} | " + " | ".join(cells) + " |"


def sweep(found: dict[str, Findings]) -> Iterator[str]:
    """`own-prior` alone: from a plain gradient by batch size, and members."""
    sizes = sorted({row.batch for one in found.values() for row in one.reconstruction})
    heads = [*(f"F1, batch {size}" for size in sizes), "AUC, update", "AUC, summary"]
    yield "| | " + " | ".join(heads) + " |"
    yield "|---|" + "---|" * len(heads)
    for name, one in found.items():
        near = [row for row in one.reconstruction if row.sees == "gradient" and row.attack == "span"]
        rows = {size: [row for row in near if row.batch == size] for size in sizes}
        cells = [shown(best(one, here, "f1").scores["f1"]) if here else "–" for here in rows.values()]
        for source in ("update", "summary"):
            auc = [row.auc for row in one.membership if row.source == source and row.method == one.method]
            cells.append(shown(auc[0]) if auc else "–")
        yield f"| {name} | " + " | ".join(cells) + " |"
    guess = {r.batch: r.scores["f1"] for r in next(iter(found.values())).reconstruction if r.attack == "guesser"}
    cells = [shown(guess[size]) if size in guess else "–" for size in sizes]
    yield "| guesser | " + " | ".join([*cells, "0.50", "0.50"]) + " |"


def sums(found: dict[str, Findings]) -> Iterator[str]:
    """From one upload, a sum of three clients, and that less one's own part: the best attack beside a guess."""
    sizes = sorted({row.batch for one in found.values() for row in one.reconstruction})
    yield "| set | of a round | of | " + " | ".join(f"batch {size}" for size in sizes) + " |"
    yield "|---|---|---|" + "---|" * len(sizes)
    for name, one in found.items():
        score, digits = ("f1", 2) if one.kind == "text" else ("psnr", 1)
        for view in dict.fromkeys(row.view for row in one.reconstruction):
            here = [row for row in one.reconstruction if row.view == view]
            guessed = {(r.batch, r.trials): r.scores[score] for r in here if r.attack == "guesser"}
            for sees in ("update", "gradient"):
                cells = []
                for size in sizes:
                    rows = [r for r in here if (r.sees, r.batch) == (sees, size) and r.attack in ATTACKS]
                    if not rows:
                        cells.append("–")
                        continue
                    most = max(rows, key=lambda r: r.scores[score].mean - guessed[r.batch, r.trials].high)
                    guess = guessed[most.batch, most.trials]
                    mark = "**" if most.scores[score].low > guess.high else ""
                    cells.append(f"{mark}{shown(most.scores[score], digits)}{mark}; guess {shown(guess, digits)}")
                yield f"| {name} | {view} | {sees} | " + " | ".join(cells) + " |"


def curve(settings: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Mean accuracy, and that less `own-prior` without noise: paired over clients and the seeds that both have."""
    yield "| | " + " | ".join(f"`{name}`" for name in settings) + " |"
    yield "|---|" + "---|" * len(settings)
    for variant in dict.fromkeys(name for found in settings.values() for name in found):
        cells = []
        for found in settings.values():
            plain, own = found["own-prior"], found.get(variant, {})
            seeds = sorted(set(plain) & set(own))
            if not seeds:
                cells.append("–")
                continue
            pairs = [(own[s]["clients"][c], plain[s]["clients"][c]) for s in seeds for c in plain[s]["clients"]]
            one, other = 100 * np.array([pair for pair in pairs if None not in pair]).T
            drawn = np.random.default_rng(0).integers(len(one), size=(4000, len(one)))
            low, high = np.percentile((one - other)[drawn].mean(1), [2.5, 97.5])
            less = "" if variant == "own-prior" else f", {(one - other).mean():+.1f} ({low:+.1f} to {high:+.1f})"
            cells.append(f"{one.mean():.1f}{less}; {len(seeds)} seed{'s' if len(seeds) > 1 else ''}")
        yield f"| {variant} | " + " | ".join(cells) + " |"


def main() -> None:
    whole = {name: read_findings(path) for name in WHOLE if (path := RESULTS / f"{name}.json").is_file()}
    print("\n".join(overview(whole)))
    for name, found in whole.items():
        print(f"\n## {name}: {found.seconds / 60:.0f} minutes\n")
        for claim in found.claims:
            print(f"- {'holds' if claim.holds else '**does not hold**'}: {claim.claim}. {claim.why}")
        for title, lines in (
            ("from a plain gradient", back(found, "gradient")),
            ("from what a round sends", back(found, "update")),
            ("members", members(found)),
            ("labels", labels(found)),
        ):
            print(f"\n### {name}, {title}\n")
            print("\n".join(lines))
    others = {path.stem: read_findings(path) for path in sorted(RESULTS.glob("*.json")) if path.stem not in WHOLE}
    sealed = {name: others.pop(name) for name in list(others) if name.startswith("sealed")}
    print("\n## From sums of three clients; bold: above the guess\n")
    print("\n".join(sums(sealed)))
    if others:
        print("\n## own-prior on BANKING77 otherwise\n")
        print("\n".join(sweep(others)))
    measured = json.loads((RESULTS.parent / "curve.json").read_text())
    if "accuracy" in measured:
        print("\n## What [privacy] costs\n")
        print("\n".join(curve(measured["accuracy"])))


if __name__ == "__main__":
    main()
