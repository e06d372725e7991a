"""What a result says in plain sentences, whichever method wins."""

from __future__ import annotations

from collections import Counter

from trifed.reports.format import MOST_NAMED, few, listing, percent, plural, points, size, span
from trifed.reports.results import MethodResult, Partition, Study

LONG_CONTROLS = {
    "probe-alone": "a linear probe of the frozen model on each client's own data",
    "probe-all": "a linear probe of the frozen model on all clients' data together",
    "probe-all-prior": "that probe with each client's own label shares in place of everybody's",
    "class-means": "the nearest class mean of the frozen model's features",
    "majority": "each client's most frequent label",
}
ALIKE = 0.0005
"""Differences that one decimal of a percentage does not show."""


def ranked(partition: Partition) -> list[tuple[str, MethodResult, float]]:
    """Methods with a result, the highest mean first."""
    known = [(name, found, found.mean) for name, found in partition.methods.items() if found.mean is not None]
    return sorted(known, key=lambda item: -item[2])


def level_with_first(partition: Partition) -> list[str]:
    """The first method and those not clearly behind it: the difference's interval holds 0, or there is none."""
    order = ranked(partition)
    if not order:
        return []
    first = order[0][0]
    level = [first]
    for name, _, _ in order[1:]:
        gap = partition.difference(first, name)
        if gap is None or gap.interval is None or gap.interval[0] <= 0:
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
        lost = f" Perplexity: {found.perplexity:.3g} in the mean." if found.perplexity is not None else ""
        return f"{first} reaches {percent(mean)} % mean test {partition.metric} {over} ({ends}{sure}).{lost}"
    second, value = order[1][0], order[1][2]
    gap = partition.difference(first, second)
    if gap is not None and gap.interval is not None:
        return _sure_verdict(partition, over)
    if mean - value < ALIKE:
        return f"{first} and {second} end alike, at {percent(mean)} % mean test {partition.metric} {over}."
    return (
        f"{first} has the highest mean test {partition.metric}, {percent(mean)} % {over}; next is {second} with "
        f"{percent(value)} %. There is no interval to tell whether that is more than noise."
    )


def _sure_verdict(partition: Partition, over: str) -> str:
    """Where the first two have an interval between them."""
    means = {name: value for name, _, value in ranked(partition)}
    level = level_with_first(partition)
    first, second = list(means)[:2]
    gap = _gap(partition, first, second)
    if len(level) == 1:
        return f"{first} is ahead with {percent(means[first])} % mean test {partition.metric} {over} ({gap})."
    shown = few([f"{name} {percent(means[name])} %" for name in level])
    behind = few([name for name in means if name not in level])
    rest = f"; {listing(behind)} {'is' if len(behind) == 1 else 'are'} behind" if behind else ""
    alike = f"{listing(shown)} mean test {partition.metric} {over} cannot be told apart"
    return f"No clear winner: {alike} ({gap}){rest}."


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
    more = f", {times:,.0f} times the smallest upload" if times > 1.5 else ""
    return f"Each client uploads a round: {listing(shown)}{more}.{_plain_lora(partition)}"


def _plain_lora(partition: Partition) -> str:
    """What `fedavg-lora` would send, where there is no other method that sends to compare with."""
    loud = [(method, found) for method, found in partition.methods.items() if found.bytes.total]
    rival = loud[0][1].fedavg_lora_would_send if len(loud) == 1 else None
    if rival is None or rival < 1.05 * loud[0][1].bytes.total:
        return ""  # nothing known, or as much as plain federated LoRA itself
    method, total = loud[0][0], loud[0][1].bytes.total
    return (
        f" In all, {method} sent {size(total)}; for the same rounds fedavg-lora would send {size(rival)}, "
        f"{rival / total:.0f} times as much."
    )


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
    found = [partition for partition in study.results.values() if ranked(partition)]
    so_far = "" if study.finished else "Not finished. "
    if len(found) <= 1:
        return so_far + verdict(found[0] if found else Partition())
    levels = [level_with_first(partition) for partition in found]
    ahead = Counter(level[0] for level in levels if len(level) == 1)
    undecided = len(found) - ahead.total()
    if not ahead:
        always = [name for name in levels[0] if all(name in level for level in levels)]
        among = (
            f"; {listing(few(always))} {'is' if len(always) == 1 else 'are'} among the best on each"
            if always
            else ""
        )
        return f"{so_far}On none of {len(found)} partitions is one method clearly ahead{among}."
    parts = [f"{name} is clearly ahead on {count}" for name, count in ahead.most_common()]
    parts += [f"no method is on {undecided}"] if undecided else []
    return f"{so_far}Of {len(found)} partitions, {listing(parts)}."
