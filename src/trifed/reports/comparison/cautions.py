"""What one should not conclude from a result, in plain sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trifed.reports.comparison.verdict import ranked
from trifed.reports.format import few, listing, percent, plural, points
from trifed.reports.results import MethodResult, Source, Study

FEW_SEEDS = 3
FEW_TESTS = 100


def cautions(source: Source) -> list[str]:
    """One sentence each; what holds of several partitions is said once."""
    study = source.study
    return [
        *_on_seeds(study),
        *_on_rounds(study),
        *_on_scoring(study),
        *_on_data(source),
        *_on_tuning(study),
        *_on_guards(source),
        "Few bytes are no protection by themselves: nothing here measures what a message reveals about the data.",
    ]


def _on_seeds(study: Study) -> Iterable[str]:
    fewest = min((len(partition.seeds) for partition in study.results.values()), default=0)
    if fewest == 1:
        yield "One seed, and so one cut of the data: differences of a few points are noise."
    elif 1 < fewest < FEW_SEEDS:
        yield f"{fewest} seeds are few draws of the cut and of the training."
    if any(partition.differences for partition in study.results.values()):
        yield "The intervals are for these clients and this data; other data may rank the methods otherwise."


def _on_guards(source: Source) -> Iterable[str]:
    let_out = dict.fromkeys(text for details in source.details.values() for text in details.warned)
    if let_out:
        shown = listing(few(list(let_out)))
        yield f"Sent although it stands on so little that it can show single examples: {shown}."


def _by_method(study: Study, say: Callable[[MethodResult], str]) -> dict[str, str]:
    """Method → what there is to say of it; with several partitions, each after its name."""
    several = len(study.results) > 1
    found: dict[str, list[str]] = {}
    for place, partition in study.results.items():
        for method, result in partition.methods.items():
            text = say(result)
            if text:
                found.setdefault(method, []).append(f"{place} {text}" if several else text)
    return {method: "; ".join(texts) for method, texts in found.items()}


def _on_rounds(study: Study) -> Iterable[str]:
    rising = _by_method(study, _rise)
    if rising:
        shown = listing(few([f"{method} ({text})" for method, text in rising.items()]))
        yield f"Still rising over the last quarter of the rounds: {shown}. With more rounds the order may change."
    results = [found for partition in study.results.values() for found in partition.methods.values()]
    if any(found.curve and (found.plateau is None or found.plateau.reached is None) for found in results):
        yield "Too few evaluated rounds to tell whether the curves have levelled off."


def _rise(found: MethodResult) -> str:
    known = found.plateau is not None and found.plateau.reached is False
    return f"{points(found.plateau.rise_in_last_quarter)} points" if known and found.plateau else ""


def _on_scoring(study: Study) -> Iterable[str]:
    """What right after local training is another model's number than the one scored; one partition a method."""
    widest: dict[str, tuple[float, str]] = {}
    for place, partition in study.results.items():
        for method, found in partition.methods.items():
            if found.evaluated_model != "received" or found.mean is None or found.mean_trained is None:
                continue
            gap = abs(found.mean_trained - found.mean)
            where = f" on {place}" if len(study.results) > 1 else ""
            text = f"{method} {percent(found.mean)} %, then {percent(found.mean_trained)} %{where}"
            widest[method] = max(widest.get(method, (0.01, "")), (gap, text))
    shown = [text for _, text in widest.values() if text]
    if shown:
        which = " (where it differs most)" if len(study.results) > 1 else ""
        yield (
            f"Scored as the model that everybody receives, which is another right after a client's own training"
            f"{which}: {'; '.join(shown)}."
        )


def _on_data(source: Source) -> Iterable[str]:
    easy = []
    for place, partition in source.study.results.items():
        best, majority = ranked(partition)[:1], partition.controls.get("majority")
        if best and majority and majority.mean is not None and best[0][2] - majority.mean < 0.02:
            easy.append(f"{place} {percent(majority.mean)} %")
    if easy:
        yield f"Answering with each client's most frequent label does as well or nearly so: {listing(easy)}."
    splits = [details.split for details in source.details.values() if details.split]
    tests = [client["test"] for split in splits for client in split["clients"] if client["test"]]
    if tests and min(tests) < FEW_TESTS:
        yield (
            f"A client has as few as {plural(min(tests), 'test example')}: one more right is "
            f"{100 / min(tests):.1f} points for it."
        )


def _on_tuning(study: Study) -> Iterable[str]:
    if not study.tuning and len(study.methods) > 1:
        yield "The learning rates were set, not searched for each method: another rate may serve a method better."
    borrowed = [
        f"{name} (from {p.tuned_on})" for name, p in study.results.items() if p.tuned_on not in (None, name)
    ]
    if study.tuning and borrowed:
        yield f"Learning rates were searched on another partition for {listing(borrowed)}."
