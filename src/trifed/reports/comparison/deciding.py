"""Results by the metric that decides, in the place of accuracy, and the verdict by one that is no share."""

from __future__ import annotations

from trifed.reports.format import plural
from trifed.reports.results import Deciding, MethodResult, Number, Partition, Spread


def by_deciding_metric(partition: Partition) -> Partition:
    """Return a partition whose means and differences are those of the deciding metric.

    The numbers of a metric of which less is better have the opposite sign, so that more is better everywhere.
    Differences are over the clients' values; they have 95 % t intervals where there are three clients or more.
    """
    metric = partition.deciding
    if metric.name == "accuracy":
        return partition
    methods = {name: _by(found, metric) for name, found in partition.methods.items()}
    changes = {"metric": metric.name, "methods": methods, "differences": {}, "deciding": Deciding()}
    return partition.model_copy(update=changes)


def _by(found: MethodResult, metric: Deciding) -> MethodResult:
    spread = found.metrics.get(metric.name, Spread())
    ends = {end: _signed(getattr(spread, end), metric) for end in ("mean", "worst", "best")}
    clients = [_signed(value, metric) for value in spread.client_accuracy]
    return found.model_copy(update={**ends, "interval": None, "client_accuracy": clients})


def _signed(value: Number, metric: Deciding) -> Number:
    return -value if value is not None and metric.lower_is_better else value


def verdict_in_numbers(partition: Partition) -> str:
    """Return the result of one partition as a sentence, by a deciding metric that is not shown as a percentage."""
    metric, view = partition.deciding, by_deciding_metric(partition)
    known = {name: found.mean for name, found in view.methods.items() if found.mean is not None}
    order = sorted(known, key=lambda name: -known[name])
    if not order:
        return f"No test {metric.name} yet."
    sign = -1 if metric.lower_is_better else 1
    values = ", ".join(f"{name} {sign * known[name]:.4g}" for name in order)
    lower = ", less is better" if metric.lower_is_better else ""
    what = f"mean test {metric.name} over {plural(len(view.clients), 'client')}{lower}"
    if len(order) == 1:
        return f"{values} {what}."
    gap = view.difference(order[0], order[1])
    ends = sorted(sign * end for end in gap.interval) if gap and gap.interval else None
    middle = sign * (known[order[0]] - known[order[1]])
    sure = f"{middle:+.3g}, " + (f"95 % {ends[0]:+.3g} to {ends[1]:+.3g}" if ends else "no interval")
    ahead = gap is not None and gap.interval is not None and gap.interval[0] > 0
    start = "Ahead" if ahead else "No clear winner"
    return f"{start}: {values} {what} ({order[0]} minus {order[1]}: {sure})."
