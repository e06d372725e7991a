"""The worth of sharing: a method that shares against the best one that sends nothing, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trifed.methods.local import ALONE
from trifed.reports.comparison.deciding import by_deciding_metric
from trifed.reports.format import percent, plural, points, size, span
from trifed.reports.results import Deciding, Interval, Partition

ALIKE = 0.0005
"""Differences that one decimal of a percentage does not show."""
FEWEST_FOR_INTERVAL = 3


@dataclass(frozen=True)
class Worth:
    """The difference between a method that shares and the best one that sends nothing.

    Attributes:
        kind: "gain" or "loss" if the 95 % interval of the difference lies on one side of 0; else "unclear".
        shared: The method that shares.
        alone: The best method that sends nothing.
        metric: Name of the metric that decides, for people.
        deciding: How that metric is read.
        gain: Mean improvement by sharing, positive if sharing is better; a share if the metric is one.
        interval: Its 95 % interval; None if there is none.
        means: Means of `shared` and of `alone`, as the metric counts.
        gains: Client → improvement; only clients with both numbers.
        clients: Number of all clients.
        up_per_round: Bytes that leave one client in a round.
        once_up: Bytes that leave one client once, before round 1.
        perplexity: Perplexities of `shared` and of `alone`; None if one is unknown.
    """

    kind: Literal["gain", "loss", "unclear"]
    shared: str
    alone: str
    metric: str
    deciding: Deciding
    gain: float
    interval: Interval
    means: tuple[float, float]
    gains: dict[str, float]
    clients: int
    up_per_round: float
    once_up: float
    perplexity: tuple[float, float] | None

    @property
    def better(self) -> list[str]:
        """Return the clients that are better off with sharing."""
        return [name for name, gain in self.gains.items() if gain > self._alike]

    @property
    def worse(self) -> list[str]:
        """Return the clients that are worse off with sharing, the one that loses most first."""
        order = sorted(self.gains, key=lambda name: self.gains[name])
        return [name for name in order if self.gains[name] < -self._alike]

    @property
    def _alike(self) -> float:
        return ALIKE if self.deciding.share else 1e-9


def alone_label(worth: Worth) -> str:
    """Return the label of separate training, with the name of the method."""
    return f"separate training ({worth.alone})"


def worth_of_sharing(partition: Partition) -> Worth | None:
    """Return what sharing was worth; None unless one method's sharing can be told from separate training.

    That is so if only one method shares, or if its own counterpart without an exchange, `alone`, ran beside it.
    The first method that shares counts; of those that send nothing, the best.
    """
    view = by_deciding_metric(partition)
    means = {name: found.mean for name, found in view.methods.items() if found.mean is not None}
    silent = [name for name in means if not view.methods[name].bytes.total]
    sharing = [name for name in means if name not in silent]
    if not silent or not sharing or (len(sharing) > 1 and ALONE not in silent):
        return None
    shared, alone = sharing[0], max(silent, key=lambda name: means[name])
    gap = view.difference(shared, alone)
    gain = gap.mean if gap and gap.mean is not None else means[shared] - means[alone]
    interval = gap.interval if gap else None
    kind: Literal["gain", "loss", "unclear"] = "unclear"
    if interval and (abs(gain) > ALIKE or not partition.deciding.share):
        kind = "gain" if interval[0] > 0 else "loss" if interval[1] < 0 else "unclear"
    sign = -1 if partition.deciding.lower_is_better else 1
    found = view.methods[shared]
    pairs = zip(view.clients, found.client_accuracy, view.methods[alone].client_accuracy, strict=False)
    return Worth(
        kind=kind,
        shared=shared,
        alone=alone,
        metric=view.metric,
        deciding=partition.deciding,
        gain=gain,
        interval=interval,
        means=(sign * means[shared], sign * means[alone]),
        gains={name: one - other for name, one, other in pairs if one is not None and other is not None},
        clients=len(view.clients),
        up_per_round=found.bytes.up_per_round,
        once_up=found.bytes.once_up,
        perplexity=_perplexities(partition, shared, alone),
    )


def _perplexities(partition: Partition, shared: str, alone: str) -> tuple[float, float] | None:
    one, other = partition.methods[shared].perplexity, partition.methods[alone].perplexity
    return None if one is None or other is None else (one, other)


def worth_sentence(worth: Worth) -> str:
    """Return gain, loss, or that neither is clear, with its interval; the sites better off; what was sent."""
    parts = [_difference(worth), _off(worth), _perplexity(worth), sent_clause(worth.up_per_round, worth.once_up)]
    return f"{'; '.join(filter(None, parts))}."


def _difference(worth: Worth) -> str:
    if not worth.deciding.share:
        return _difference_in_numbers(worth)
    sure = _sure(worth, span(worth.interval, signed=True))
    what = f"points of test {worth.metric}"
    if worth.kind == "unclear":
        return f"No clear gain from federating: {points(worth.gain)} {what} against separate training ({sure})"
    verb, beside = ("gained", "over") if worth.kind == "gain" else ("lost", "against")
    return f"Federating {verb} {percent(abs(worth.gain))} {what} {beside} separate training ({sure})"


def _difference_in_numbers(worth: Worth) -> str:
    """Return the difference in a metric that is no share, with both means, which give its size a meaning."""
    ends = worth.interval or (0.0, 0.0)
    sure = _sure(worth, f"{ends[0]:+.3g} to {ends[1]:+.3g}".replace("-", "−"))
    lower = ", less is better" if worth.deciding.lower_is_better else ""
    one, other = worth.means
    what = f"test {worth.metric} {one:.4g} instead of {other:.4g} with separate training{lower}"
    amount = f"{worth.gain:+.3g}".replace("-", "−")
    if worth.kind == "unclear":
        return f"No clear gain from federating: {what} (improvement {amount}, {sure})"
    verb = "Federating helped" if worth.kind == "gain" else "Federating did harm"
    return f"{verb}: {what} (improvement {amount}, {sure})"


def _sure(worth: Worth, shown: str) -> str:
    if worth.interval:
        return f"95 % interval {shown}"
    few = worth.clients < FEWEST_FOR_INTERVAL
    return f"{plural(worth.clients, 'site')}: too few for an interval" if few else "no interval"


def _off(worth: Worth) -> str:
    """Return how many sites are better or worse off; empty if no site has both numbers."""
    count, better, worse = len(worth.gains), len(worth.better), len(worth.worse)
    if not count:
        return ""
    if not better and not worse:
        return "no site is better or worse off"
    if worth.kind == "loss":
        return f"{worse} of {plural(count, 'site')} {'is' if worse == 1 else 'are'} worse off"
    also = f", {worse} worse" if worth.kind == "unclear" else ""
    if not better:
        return f"no site is better off{also}"
    return f"{better} of {plural(count, 'site')} {'is' if better == 1 else 'are'} better off{also}"


def _perplexity(worth: Worth) -> str:
    if worth.perplexity is None or worth.metric == "perplexity":
        return ""
    one, other = worth.perplexity
    return f"perplexity {one:.3g} instead of {other:.3g}, less is better"


def sent_clause(up_per_round: float, once_up: float) -> str:
    """Return what left each site: bytes of a round, and those of the one time before round 1."""
    if not up_per_round and not once_up:
        return "nothing left any site"
    once = f"{size(once_up)} once" if once_up else ""
    each = f"{size(up_per_round)} a round" if up_per_round else ""
    return f"{' and '.join(filter(None, [each, once]))} left each site"


def only_sentence(name: str, partition: Partition) -> str:
    """Return the result of the only method as a sentence, which says what is missing to judge it."""
    metric, found = partition.deciding, by_deciding_metric(partition).methods[name]
    sign = -1 if metric.lower_is_better else 1
    mean, worst, best = (
        "-" if value is None else f"{percent(value)} %" if metric.share else f"{sign * value:.4g}"
        for value in (found.mean, found.worst, found.best)
    )
    what = partition.metric if metric.name == "accuracy" else metric.name
    lower = ", less is better" if metric.lower_is_better else ""
    sites = plural(len(partition.clients), "site")
    parts = [
        f"{name} reached {mean} test {what}, the mean over {sites} (worst {worst}, best {best}{lower})",
        "" if found.perplexity is None else f"perplexity {found.perplexity:.3g}",
        "its gain over separate training is unknown" if found.bytes.total else "",
        sent_clause(found.bytes.up_per_round, found.bytes.once_up),
    ]
    return f"{'; '.join(filter(None, parts))}."
