"""The ranking of methods over the data sets of a comparison: means, intervals, wins, losses and bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trifed.reports.comparison.deciding import by_deciding_metric
from trifed.reports.format import percent, plural, points, size, span
from trifed.reports.results import Difference, Interval, Number, Partition, Study


@dataclass(frozen=True)
class RankedMethod:
    """One method over all data sets on which every method has a result.

    Attributes:
        mean: Mean of the data sets' means; None if their metrics are no shares.
        interval: Its 95 % interval over clients and seeds, for these data sets; None without intervals of all.
        rank: Mean rank over the data sets, 1 is best.
        wins: Pairs of a data set and a rival in which the interval of the difference lies above 0.
        losses: Those in which it lies below 0.
        pairs: All of them.
        up: Bytes that leave one client in a round, mean over the data sets.
        sent: Bytes of one client in a round, up and down, mean over the data sets.
        frontier: True if no method is at least as good and sends less, or is better and sends as much.
    """

    method: str
    mean: Number
    interval: Interval
    rank: float
    wins: int
    losses: int
    pairs: int
    up: float
    sent: float
    frontier: bool = False


def compared(study: Study) -> dict[str, Partition]:
    """Return the data sets on which every method with a result has one, by the metric that decides."""
    views = {name: by_deciding_metric(found) for name, found in study.results.items()}
    methods = {m for view in views.values() for m, found in view.methods.items() if found.mean is not None}
    return {
        name: view
        for name, view in views.items()
        if methods and all(m in view.methods and view.methods[m].mean is not None for m in methods)
    }


def rank_methods(study: Study) -> list[RankedMethod]:
    """Return the methods, the best first; empty without a data set on which all have a result.

    The highest mean is first; where metrics are no shares, the lowest mean rank.
    """
    views = compared(study)
    if not views:
        return []
    shares = all(study.results[name].deciding.share for name in views)
    methods = [name for name in study.methods if name in next(iter(views.values())).methods]
    ranks = {name: _ranks(view, methods) for name, view in views.items()}
    found = [_ranked_method(method, methods, views, ranks, shares) for method in methods]
    found.sort(key=lambda one: (-(one.mean or 0.0), one.rank))
    return [_with_frontier(one, found) for one in found]


def _ranks(view: Partition, methods: Sequence[str]) -> dict[str, float]:
    """Return each method's rank on a data set; equal means share the middle of their ranks."""
    means = np.array([view.methods[name].mean for name in methods], np.float64)
    above, equal = (means[None] > means[:, None]).sum(1), (means[None] == means[:, None]).sum(1)
    return dict(zip(methods, above + (equal + 1) / 2, strict=True))


def _ranked_method(
    method: str,
    methods: Sequence[str],
    views: Mapping[str, Partition],
    ranks: Mapping[str, dict[str, float]],
    shares: bool,
) -> RankedMethod:
    results = [view.methods[method] for view in views.values()]
    gaps = [view.difference(method, other) for view in views.values() for other in methods if other != method]
    ends = [gap.interval for gap in gaps if gap and gap.interval]
    mean = float(np.mean([found.mean or 0.0 for found in results])) if shares else None
    return RankedMethod(
        method=method,
        mean=mean,
        interval=_around(mean, [found.interval for found in results]),
        rank=float(np.mean([ranks[name][method] for name in views])),
        wins=sum(low > 0 for low, _ in ends),
        losses=sum(high < 0 for _, high in ends),
        pairs=len(gaps),
        up=float(np.mean([found.bytes.up_per_round for found in results])),
        sent=float(np.mean([found.bytes.up_per_round + found.bytes.down_per_round for found in results])),
    )


def _around(mean: Number, intervals: Sequence[Interval]) -> Interval:
    """Return the interval of a mean of independent means: half widths add up as squares."""
    halves = [(ends[1] - ends[0]) / 2 for ends in intervals if ends]
    if mean is None or not halves or len(halves) < len(intervals):
        return None
    half = float(np.sqrt(np.sum(np.square(halves)))) / len(halves)
    return (mean - half, mean + half)


def _with_frontier(one: RankedMethod, all_of_them: Sequence[RankedMethod]) -> RankedMethod:
    def good(item: RankedMethod) -> float:
        return -item.rank if item.mean is None else item.mean

    beaten = any(
        good(other) >= good(one)
        and other.sent <= one.sent
        and (good(other), -other.sent) != (good(one), -one.sent)
        for other in all_of_them
    )
    return RankedMethod(**{**vars(one), "frontier": not beaten})


def mean_difference(study: Study, one: str, other: str) -> Difference | None:
    """Return the mean over the data sets of the difference of two methods, with its interval; None without."""
    gaps = [view.difference(one, other) for view in compared(study).values()]
    known = [gap for gap in gaps if gap and gap.mean is not None]
    if not known or len(known) < len(gaps):
        return None
    mean = float(np.mean([gap.mean or 0.0 for gap in known]))
    return Difference(mean=mean, interval=_around(mean, [gap.interval for gap in known]))


def not_clearly_behind(study: Study, order: Sequence[RankedMethod]) -> list[RankedMethod]:
    """Return the first method and all those whose mean difference from it has no interval above 0."""
    gaps = {one.method: mean_difference(study, order[0].method, one.method) for one in order[1:]}
    behind = {name for name, gap in gaps.items() if gap and gap.interval and gap.interval[0] > 0}
    return [one for one in order if one.method not in behind]


def ranking_sentence(study: Study) -> str:
    """Return who is first over all data sets, and by how much; empty without a ranking of two methods."""
    order = rank_methods(study)
    if len(order) < 2:
        return ""
    first, second = order[:2]
    gap = mean_difference(study, first.method, second.method)
    clear = bool(gap and gap.interval and gap.interval[0] > 0)
    sets, known = len(compared(study)), len(study.results)
    over = (
        f"{plural(len(order), 'method')} over {f'{sets} of ' if sets < known else ''}{plural(known, 'data set')}"
    )
    if first.mean is None:
        next_one = f"{second.method} {second.rank:.1f}"
        lead = f"{first.method} has the best mean rank of {over}, {first.rank:.1f} ({next_one})"
    elif clear and gap:
        ahead = f"{points(gap.mean).lstrip('+')} points ahead of {second.method}"
        lead = f"{first.method} is first of {over}: {percent(first.mean)} % in the mean, {ahead} ({_sure(gap)})"
    else:
        by = f"difference {points(gap.mean)}, {_sure(gap)}" if gap else _sure(gap)
        also = f"{second.method} {percent(second.mean)} % ({by})"
        lead = f"No clear winner of {over}: {first.method} reached {percent(first.mean)} % in the mean, {also}"
    counts = (
        f"{first.method} is clearly better in {first.wins} of {first.pairs} comparisons, worse in {first.losses}"
    )
    sent = f"{size(first.up)} a round left each site" if first.up else "nothing left any site"
    return f"{lead}; {counts}; {sent}."


def _sure(gap: Difference | None) -> str:
    return f"95 % interval {span(gap.interval, signed=True)}" if gap and gap.interval else "no interval"
