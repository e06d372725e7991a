"""The recommendation that follows from a result: at most two sentences, and a code that stays."""

from __future__ import annotations

from typing import NamedTuple

from trifed.methods.local import ALONE
from trifed.reports.comparison.deciding import by_deciding_metric
from trifed.reports.comparison.ranking import not_clearly_behind, rank_methods
from trifed.reports.comparison.worth import ALIKE, Worth, worth_of_sharing
from trifed.reports.format import control_label, listing, percent, points, size, span
from trifed.reports.results import Difference, Partition, Source, Study

FEW_SEEDS = 3
SIMPLE = ("probe-alone", "class-means")
"""Controls that a site can use without training an adapter together with others."""


class Advice(NamedTuple):
    """A recommendation of one or two sentences. `code` is stable; the sentences are for people."""

    code: str
    sentence: str
    second: str = ""

    @property
    def text(self) -> str:
        """Return all sentences; empty if there is no advice."""
        return f"{self.sentence} {self.second}".rstrip()


def advice_on(source: Source) -> Advice:
    """Return what to do after a run or a comparison."""
    if len(source.study.results) > 1:
        return _on_ranking(source.study)
    partition = next(iter(source.study.results.values()), Partition())
    diverged = dict.fromkeys(text for details in source.details.values() for text in details.diverged)
    if not source.study.finished:
        return Advice("finish", "Let it finish before you decide; what is here may still change.")
    if all(found.mean is None for found in partition.methods.values()):
        return _without_tests(source.study)
    if diverged:
        where = listing([*diverged])
        return Advice("diverged", f"Lower training.learning_rate and run again: training diverged ({where}).")
    worth = worth_of_sharing(partition)
    if worth is None:
        return _without_worth(partition, source.study.between_sites)
    rival = _rival(partition, worth)
    found = rival or _on_worth(worth, len(partition.seeds))
    return found if found.second else found._replace(second=_simple(partition))


def _on_ranking(study: Study) -> Advice:
    """Return the method that sends least of those that are not clearly behind over all data sets."""
    order = rank_methods(study)
    if not study.finished:
        return Advice("finish", "Let it finish before you decide; what is here may still change.")
    if len(order) < 2:
        return Advice("none", "")
    level = not_clearly_behind(study, order)
    found = _lightest(order[0].method, {one.method: one.up for one in level})
    return found._replace(second="This holds for the mean over these data sets.")


def _lightest(first: str, level: dict[str, float]) -> Advice:
    """Return the method that sends least. `level`: those not clearly behind → bytes a round, best first."""
    if len(level) == 1:
        return Advice("best", f"Use {first}: every other method is clearly behind it.")
    least = min(level, key=lambda name: level[name])
    cost = f"it sends least, {size(level[least])} a round" if level[least] else "it sends nothing"
    return Advice("lightest", f"Use {least}: of the {len(level)} methods that are not clearly behind, {cost}.")


def _without_tests(study: Study) -> Advice:
    """Return what to do for accuracies. Between sites rows may be held back, and only scores are missing."""
    if not study.between_sites:
        held = "Keep examples back for a test, with data.test_fraction above 0 or a test table; without them"
        return Advice("no-tests", f"{held} nobody can say which model is better.")
    own = "each site can evaluate its own model"
    settings = study.configuration
    noise = [settings.get("privacy", {}).get(name) for name in ("summary", "update", "training")]
    if settings.get("sealing", {}).get("on") or any(noise):
        return Advice("no-scores", f"Scores stay at the sites in a sealed run or one with noise; {own}.")
    how = "To see accuracies here, sites set tell_scores = true in node.toml before the run"
    return Advice("no-scores", f"{how}; {own} in any case.")


def _without_worth(partition: Partition, between_sites: bool) -> Advice:
    means = {name: found.mean for name, found in partition.methods.items() if found.mean is not None}
    if len(means) > 1:
        return lightest_of_the_best(partition)
    if between_sites:
        why = "A run between sites has no separate training beside it, so it cannot show what federating gains."
        return Advice("no-baseline", why, "A simulated run measures that (docs/is-it-worth-it.md).")
    if partition.methods[next(iter(means))].bytes.total:
        text = f"To learn what federating gains, run it again beside '{ALONE}', the same method without sharing."
        return Advice("no-baseline", text)
    return Advice("nothing-shared", "To learn what federating would gain, run a method that shares beside this.")


def lightest_of_the_best(partition: Partition) -> Advice:
    """Return the method that sends least of those that are not clearly behind the best one."""
    view = by_deciding_metric(partition)
    means = {name: found.mean for name, found in view.methods.items() if found.mean is not None}
    first = max(means, key=lambda name: means[name])
    level = [name for name in means if name == first or not _above_zero(view.difference(first, name))]
    order = sorted(level, key=lambda name: -means[name])
    return _lightest(first, {name: view.methods[name].bytes.up_per_round for name in order})


def _above_zero(gap: Difference | None) -> bool:
    return bool(gap and gap.interval and gap.interval[0] > 0)


def _rival(partition: Partition, worth: Worth) -> Advice | None:
    """Return the advice to take another method that shares and is clearly better than the first one."""
    view = by_deciding_metric(partition)
    others = {
        name: gap
        for name, found in view.methods.items()
        if found.bytes.total and name != worth.shared and _above_zero(gap := view.difference(name, worth.shared))
    }
    if not others:
        return None
    name = max(others, key=lambda one: view.methods[one].mean or 0.0)
    gap, sent = others[name], view.methods[name].bytes.up_per_round
    ahead = f"{points(gap.mean)} points, 95 % interval {span(gap.interval, signed=True)}" if gap else ""
    if _above_zero(view.difference(worth.alone, name)):
        return None
    how = f"Prefer {name}, which is clearly better than {worth.shared} here"
    how += f" ({ahead})" if worth.deciding.share else ""
    cost = f"sends {size(sent)} a round instead of {size(worth.up_per_round)}"
    unsure = (
        "" if _above_zero(view.difference(name, worth.alone)) else "Its gain over separate training is unclear."
    )
    return Advice("rival", f"{how} and {cost}.", unsure)


def _on_worth(worth: Worth, seeds: int) -> Advice:
    if worth.kind == "gain":
        keep = "their own models" if len(worth.worse) > 1 else "its own model"
        losers = (
            f"; {listing(worth.worse)} did better with separate training and may keep {keep}"
            if worth.worse
            else ""
        )
        return Advice("federate", f"Federate with {worth.shared}{losers}.")
    if worth.kind == "loss":
        text = f"Do not federate like this: train separately ({worth.alone}), or try a method that shares less."
        return Advice("alone", text)
    more = [
        "more sites" if worth.interval is None else "",
        f"{FEW_SEEDS} or more seeds (trifed compare)" if seeds < FEW_SEEDS else "",
        "more test examples",
    ]
    wanted = " or ".join(filter(None, more))
    return Advice("undecided", f"Do not decide on this result, which may be chance: repeat it with {wanted}.")


def _simple(partition: Partition) -> str:
    """Return a sentence on a control that any site can use and no method beats; empty without one."""
    if partition.deciding.name != "accuracy":
        return ""
    known = {name: spread.mean for name, spread in partition.controls.items() if name in SIMPLE and spread.mean}
    best = max(found.mean for found in partition.methods.values() if found.mean is not None)
    name = max(known, key=lambda one: known[one] or 0.0, default="")
    if not name or (known[name] or 0.0) <= best + ALIKE:
        return ""
    return f"First try what needs no training of adapters: {control_label(name)}, {percent(known[name])} %."
