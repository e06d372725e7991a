"""What a result says in plain sentences: whichever method wins, and what does not follow from it."""

from __future__ import annotations

from collections.abc import Iterable

from trifed.reports.study import Details, MethodResult, Partition, Source, Study
from trifed.reports.words import listing, percent, plural, points, size, span

LONG_CONTROLS = {
    "probe-alone": "a linear probe of the frozen model on each client's own data",
    "probe-all": "a linear probe of the frozen model on all clients' data together",
    "class-means": "the nearest class mean of the frozen model's features",
    "majority": "each client's most frequent label",
}
FEW_SEEDS = 3
MOST_NAMED = 4
ALIKE = 0.0005
"""Differences that one decimal of a percentage does not show."""


def ranked(partition: Partition) -> list[tuple[str, MethodResult, float]]:
    """Methods with a result, the highest mean first."""
    known = [(name, found, found.mean) for name, found in partition.methods.items() if found.mean is not None]
    return sorted(known, key=lambda item: -item[2])


def level_with_first(partition: Partition) -> list[str]:
    """The first method and those that are not clearly behind it: no interval of the difference lies above 0."""
    order = ranked(partition)
    if not order:
        return []
    first = order[0][0]
    level = [first]
    for name, _, _ in order[1:]:
        gap = partition.difference(first, name)
        if gap is not None and gap.interval is not None and gap.interval[0] <= 0:
            level.append(name)
    return level


def verdict(partition: Partition) -> str:
    """The result in one sentence."""
    order = ranked(partition)
    if not order:
        return "There is no accuracy to show yet."
    first, found, mean = order[0]
    over = f"over {plural(len(partition.clients), 'client')}"
    if len(order) == 1:
        ends = f"worst {percent(found.worst)}, best {percent(found.best)}"
        sure = f", 95 %: {span(found.interval)}" if found.interval else ""
        return f"{first} reaches {percent(mean)} % mean test accuracy {over} ({ends}{sure})."
    level = level_with_first(partition)
    means = {name: value for name, _, value in order}
    if len(level) > 1:
        shown = [f"{name} {percent(means[name])} %" for name in level]
        behind = [name for name in means if name not in level]
        rest = f"; {listing(behind)} {'is' if len(behind) == 1 else 'are'} behind" if behind else ""
        return (
            f"No clear winner: {listing(shown)} mean test accuracy {over} cannot be told apart "
            f"({_gap(partition, level[0], level[1])}){rest}."
        )
    second, value = order[1][0], order[1][2]
    gap = partition.difference(first, second)
    if gap is not None and gap.interval is not None:
        gap_shown = _gap(partition, first, second)
        return f"{first} is ahead with {percent(mean)} % mean test accuracy {over} ({gap_shown})."
    if mean - value < ALIKE:
        return f"{first} and {second} end alike, at {percent(mean)} % mean test accuracy {over}."
    return (
        f"{first} has the highest mean test accuracy, {percent(mean)} % {over}; next is {second} with "
        f"{percent(value)} %, {points(value - mean)} points."
    )


def _gap(partition: Partition, one: str, other: str) -> str:
    gap = partition.difference(one, other)
    if gap is None:
        return "no interval"
    return f"{one} less {other}: {points(gap.mean)} points, 95 % {span(gap.interval, signed=True)}"


def bytes_sentence(partition: Partition) -> str:
    """Who uploads how much, per client and round."""
    sent = {name: found.bytes.up_per_round for name, found in partition.methods.items() if found.mean is not None}
    if not any(sent.values()):
        return "Nothing is sent." if sent else ""
    order = sorted(sent, key=lambda name: sent[name])
    shown = [f"{name} {size(sent[name]) if sent[name] else 'nothing'}" for name in order]
    if len(shown) > MOST_NAMED:
        shown = [shown[0], f"{len(shown) - 2} others between", shown[-1]]
    least = min(count for count in sent.values() if count)
    times = sent[order[-1]] / least
    more = f", {times:.0f} times the smallest upload" if times > 1.5 else ""
    return f"Each client uploads a round: {listing(shown)}{more}."


def controls_sentence(partition: Partition) -> str:
    """The best control against the best method."""
    known = [(spread.mean, name) for name, spread in partition.controls.items() if spread.mean is not None]
    order = ranked(partition)
    if not known or not order:
        return ""
    mean, name = max(known)
    what = LONG_CONTROLS.get(name, name)
    if mean > order[0][2] + ALIKE:
        return f"Without any adapter, {what} reaches {percent(mean)} %: more than every method here."
    if mean > order[0][2] - ALIKE:
        return f"Without any adapter, {what} reaches as much, {percent(mean)} %."
    return f"The best control, {what}, reaches {percent(mean)} %."


# -- what the whole study says


def headline(study: Study) -> str:
    """The first line: of one partition its verdict, of several who is ahead how often."""
    found = {name: partition for name, partition in study.results.items() if ranked(partition)}
    so_far = "" if study.finished else "Not finished. "
    if len(found) <= 1:
        return so_far + verdict(next(iter(found.values()), Partition()))
    ahead: dict[str, int] = {}
    undecided = 0
    for partition in found.values():
        level = level_with_first(partition)
        if len(level) == 1:
            ahead[level[0]] = ahead.get(level[0], 0) + 1
        else:
            undecided += 1
    parts = [f"{name} is ahead on {count}" for name, count in sorted(ahead.items(), key=lambda item: -item[1])]
    if undecided:
        parts.append(f"no method is clearly ahead on {undecided}")
    return f"{so_far}Of {len(found)} partitions: {listing(parts)}."


def cautions(source: Source) -> list[str]:
    """What one should not conclude, one sentence each."""
    study = source.study
    several = len(study.results) > 1
    found = [
        f"{name}: {sentence}" if several else sentence
        for name, partition in study.results.items()
        for sentence in _on_partition(partition, source.details.get(name))
    ]
    return [
        *_on_seeds(study),
        *found,
        *_on_tuning(study),
        "Few bytes are no protection by themselves: nothing here measures what a message reveals about the data.",
    ]


def _on_seeds(study: Study) -> Iterable[str]:
    fewest = min((len(partition.seeds) for partition in study.results.values()), default=0)
    certain = any(partition.differences for partition in study.results.values())
    if fewest == 1:
        yield "One seed, and so one cut of the data: differences of a few points are noise."
    elif 1 < fewest < FEW_SEEDS:
        yield f"{fewest} seeds: few draws of the cut and of the training."
    if certain:
        yield "The intervals are for these clients and this data; other data may rank the methods otherwise."


def _on_partition(partition: Partition, details: Details | None) -> Iterable[str]:
    rising = [
        f"{method} ({points(found.plateau.rise_in_last_quarter)} points over the last quarter)"
        for method, found in partition.methods.items()
        if found.plateau is not None and found.plateau.reached is False
    ]
    unknown = [method for method, found in partition.methods.items() if found.plateau is None and found.curve]
    if rising:
        yield f"{listing(rising)} still rose at the end; with more rounds the order may change."
    elif unknown:
        yield "Too few evaluated rounds to tell whether the curves have levelled off."
    for method, found in partition.methods.items():
        apart = _trained_apart(found)
        if apart is not None:
            yield (
                f"{method} is scored as the model that everybody receives; right after a client's own "
                f"training it has {percent(apart)} %, not {percent(found.mean)} %."
            )
    best, majority = ranked(partition)[:1], partition.controls.get("majority")
    if best and majority and majority.mean is not None and best[0][2] - majority.mean < 0.02:
        yield f"Answering with each client's most frequent label scores {percent(majority.mean)} %."
    tests = [client["test"] for client in details.split["clients"]] if details and details.split else []
    if tests and 0 < min(tests) < 100:
        yield (
            f"A client has as few as {plural(min(tests), 'test example')}: one more right is "
            f"{100 / min(tests):.1f} points for it."
        )


def _trained_apart(found: MethodResult) -> float | None:
    """Accuracy right after local training, where it is another model's than the one scored, by a point or more."""
    if found.scored != "received" or found.mean is None or found.mean_trained is None:
        return None
    return found.mean_trained if abs(found.mean_trained - found.mean) >= 0.01 else None


def _on_tuning(study: Study) -> Iterable[str]:
    if not study.tuning and len(study.methods) > 1:
        yield "The learning rates were set, not searched for each method: another rate may serve a method better."
    borrowed = [f"{name} ({p.tuned_on})" for name, p in study.results.items() if p.tuned_on not in (None, name)]
    if study.tuning and borrowed:
        yield f"Learning rates were taken over from another partition for {listing(borrowed)}."
