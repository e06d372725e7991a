"""The verdict of a result in one line, and at most three cautions; both follow from numbers and intervals."""

from __future__ import annotations

from collections import Counter

from trifed.reports.comparison.deciding import by_deciding_metric, verdict_in_numbers
from trifed.reports.comparison.ranking import ranking_sentence
from trifed.reports.comparison.worth import ALIKE, only_sentence, worth_of_sharing, worth_sentence
from trifed.reports.document import MOST_CAUTIONS, Caution
from trifed.reports.format import control_label, listing, percent, plural, points, span
from trifed.reports.results import MethodResult, Partition, Source, Study

FEW_SEEDS, FEW_TESTS = 3, 100
PEAK = 0.02
"""A method was better earlier if its mean accuracy was higher than at the end by this or more."""
POOLED = ("probe-all", "probe-all-prior")
"""Controls that need the data of all clients in one place, which a federation may not have."""


def ranked(partition: Partition) -> list[tuple[str, MethodResult, float]]:
    """Return the methods that have a result, the highest mean first."""
    known = [(name, found, found.mean) for name, found in partition.methods.items() if found.mean is not None]
    return sorted(known, key=lambda item: -item[2])


def leaders(partition: Partition) -> list[str]:
    """Return the best method and all methods whose difference from it has no interval above 0."""
    names = [name for name, *_ in ranked(partition)]
    gaps = {name: partition.difference(names[0], name) for name in names[1:]}
    behind = {name for name, gap in gaps.items() if gap and gap.interval and gap.interval[0] > 0}
    return [name for name in names if name not in behind]


def verdict(partition: Partition) -> str:
    """Return the result of one partition as one sentence, by the metric that decides."""
    view = by_deciding_metric(partition)
    order = ranked(view)
    if not order:
        if partition.methods:
            return f"No site has test data, so that no test {view.metric} is known."
        return f"No test {view.metric} yet."
    if worth := worth_of_sharing(partition):
        return worth_sentence(worth)
    if len(order) == 1:
        return only_sentence(order[0][0], partition)
    if not partition.deciding.share or partition.deciding.lower_is_better:
        return verdict_in_numbers(partition)
    what = f"mean test {view.metric} over {plural(len(view.clients), 'client')}"
    level = leaders(view)
    reached = listing([f"{name} {percent(mean)} %" for name, _, mean in order if name in level])
    gap = view.difference(order[0][0], order[1][0])
    sure = f"{points(gap.mean)} points, 95 % {span(gap.interval, signed=True)}" if gap else "no interval"
    start = "Ahead" if len(level) == 1 else "No clear winner"
    return f"{start}: {reached} {what} ({order[0][0]} minus {order[1][0]}: {sure})."


def study_verdict(study: Study) -> str:
    """Return the result of the whole study as one line: the only partition's verdict, or who leads how often."""
    known = [partition for partition in study.results.values() if ranked(partition)]
    start = "" if study.finished else "Not finished. "
    if len(known) <= 1:
        if not known and study.between_sites and study.finished:
            return "The sites did not report scores, so no test accuracy is known here."
        partition = known[0] if known else Partition()
        return start + verdict(partition)
    if sentence := ranking_sentence(study):
        return start + sentence
    ahead = Counter(listing(level) for level in map(leaders, map(by_deciding_metric, known)) if len(level) == 1)
    counts = [f"{name} on {count}" for name, count in ahead.most_common()]
    counts += [f"no method on {len(known) - ahead.total()}"] if ahead.total() < len(known) else []
    return f"{start}Clearly ahead on {len(known)} partitions: {listing(counts)}."


def seals(partition: Partition) -> str:
    """Return a sentence for each method whose updates the server saw only in sums; empty without any."""
    seals = {name: found.fewest_in_a_sum for name, found in partition.methods.items()}
    said = {
        name: f"the server saw only sums of at least {fewest} clients" if fewest else "there was no sum"
        for name, fewest in seals.items()
        if fewest is not None
    }
    return " ".join(f"{name} was sealed: {text}." for name, text in said.items())


def cautions(source: Source) -> list[Caution]:
    """Return the three most important cautions, those about privacy first."""
    study, partitions = source.study, source.study.results
    warned = dict.fromkeys(text for details in source.details.values() for text in details.warned)
    diverged = dict.fromkeys(text for details in source.details.values() for text in details.diverged)
    better = _better_controls(partitions, pooled=False)
    pooled = _better_controls(partitions, pooled=True)
    earlier = list(filter(None, map(_better_earlier, partitions.values())))
    counts = [len(m.seeds or found.seeds) for found in partitions.values() for m in found.methods.values()]
    seeds = min(counts, default=FEW_SEEDS)
    results = [item for partition in partitions.values() for item in partition.methods.items()]
    rising = dict.fromkeys(name for name, found in results if found.plateau and found.plateau.reached is False)
    searched = {name for tuning in study.tuning.values() for name in tuning.methods}
    untuned = [name for name in study.methods if name not in searched] if len(study.methods) > 1 else []
    splits = [details.split["clients"] for details in source.details.values() if details.split]
    tests = min((client["test"] for split in splits for client in split if client["test"]), default=FEW_TESTS)
    known = [
        (
            diverged,
            "diverged",
            f"Training diverged, so that these results say nothing about the method: {listing([*diverged])}. "
            "Lower training.learning_rate.",
        ),
        (warned, "few-examples", f"Uploads of so few examples that they may reveal them: {listing([*warned])}."),
        (
            better,
            "control-better",
            f"A simple model that trains no adapter does at least as well as every method: {listing(better)}.",
        ),
        (
            earlier,
            "separate-better-earlier",
            f"Separate training was better before the last round: {listing(earlier)}. "
            'keep = "best" takes each method\'s best round, by validation data.',
        ),
        (seeds < FEW_SEEDS, "few-seeds", f"{plural(seeds, 'seed')}: differences of a few points may be noise."),
        (
            pooled,
            "pooled-better",
            f"With all data in one place, which a federation may not have, a simple model does at least as well: "
            f"{listing(pooled)}. It shows what is left to gain.",
        ),
        (
            rising,
            "still-rising",
            f"More rounds may help: {listing([*rising])} still improved in the last quarter of the rounds.",
        ),
        (
            untuned,
            "not-tuned",
            f"Learning rates of {listing(untuned)} were not searched on validation data; others may do better.",
        ),
        (
            tests < FEW_TESTS,
            "few-tests",
            f"A site has only {plural(tests, 'test example')}: its own numbers are uncertain.",
        ),
    ]
    return [Caution(code, text) for holds, code, text in known if holds][:MOST_CAUTIONS]


def _better_earlier(partition: Partition) -> str:
    """Return the best round of separate training, and the gain over it; empty if the last is about as good.

    Empty too where another metric than accuracy decides, or the best round was chosen by validation data.
    """
    worth = worth_of_sharing(partition)
    if worth is None or partition.deciding.name != "accuracy":
        return ""
    found = partition.methods[worth.alone]
    known = {point.mean: point.round for point in found.curve if point.round and point.mean is not None}
    peak = max(known, default=0.0)
    if found.kept_round is not None or peak < worth.means[1] + PEAK:
        return ""
    gain = f"the gain over that is {points(worth.means[0] - peak)} points"
    return f"{worth.alone} had {percent(peak)} % after round {known[peak]}, and {gain}"


def _better_controls(partitions: dict[str, Partition], pooled: bool) -> list[str]:
    """Return such a control with its mean, and with the data set where there are several."""
    found = {name: better_control(partition, pooled) for name, partition in partitions.items()}
    known = {name: control for name, control in found.items() if control}
    return [f"{name} ({control})" if len(partitions) > 1 else control for name, control in known.items()]


def better_control(partition: Partition, pooled: bool = False) -> str:
    """Return the best control if no method is clearly better than it, by more than 0.05 points; else nothing.

    `pooled`: of the controls that need all data in one place, instead of those that a site may use.
    """
    controls = {name: spread for name, spread in partition.controls.items() if (name in POOLED) == pooled}
    known = [(spread.mean, name) for name, spread in controls.items() if spread.mean is not None]
    mean, name = max(known, default=(0.0, ""))
    best = max((found for *_, found in ranked(partition)), default=1.0)
    return f"{control_label(name)} {percent(mean)} %" if name and mean > best - ALIKE else ""
