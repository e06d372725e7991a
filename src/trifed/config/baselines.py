"""The baselines of a run: methods that are trained beside it, on the same data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, unknown_method
from trifed.methods.local import ALONE
from trifed.methods.personalization import part_problems, sends_nothing, turn_problems

if TYPE_CHECKING:
    from trifed.config.run import RunConfig

RATE_FACTOR = 3.0
"""Factor between the learning rates that are tried for a baseline."""


def planned(config: RunConfig) -> list[str]:
    """Return the names of a run's baselines: those that are set, else "alone" if the run shares anything."""
    if config.baselines is not None:
        return config.baselines
    return [] if any(_problems_of_alone(config)) else [ALONE]


def baseline_problems(config: RunConfig) -> Iterator[str]:
    """Yield a message for each baseline that is unknown, given twice, or no other method than the run's."""
    names = config.baselines or []
    for i, name in enumerate(names):
        if name in names[:i]:
            yield f"baselines: got '{name}' twice; leave one out"
        elif name == ALONE and config.method.name in METHODS:
            yield from (f"baselines: got 'alone', but {text}" for text in _problems_of_alone(config))
        elif name not in METHODS:
            yield f"baselines: {unknown_method(name)}"
        elif name == config.method.name:
            yield f"baselines: '{name}' is the run's own method; name another one"
        elif config.method.name in METHODS and any(
            turn_problems(METHODS[name], config.with_method(name).aggregation)
        ):
            yield (
                f"baselines: '{name}' trains other tensors in alternate rounds, which cannot be combined with "
                f"aggregation.groups = 'agreement'; leave the baseline out, or set that to 'all' or 'given'"
            )
        elif config.adapter.start is not None and not _same_adapter(config, config.with_method(name)):
            yield (
                f"baselines: '{name}' has an adapter of another kind, rank or scale than the run that starts "
                f"from adapter.start; leave the baseline out, or run it by itself"
            )


def _same_adapter(config: RunConfig, other: RunConfig) -> bool:
    """Return whether two configurations have adapters of one kind, rank and scale."""
    kinds = [METHODS[one.method.name].adapter for one in (config, other)]
    return kinds[0] == kinds[1] and config.adapter == other.adapter


def without_learning_rates(client_settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return clients' settings without their learning rates, which suit the run's own method only."""
    return {
        client: {name: value for name, value in own.items() if name != "learning_rate"}
        for client, own in client_settings.items()
    }


def _problems_of_alone(config: RunConfig) -> Iterator[str]:
    """Yield why a run's method cannot be trained alone, or is trained alone already."""
    own = METHODS[config.method.name]
    problems = part_problems(own, PersonalizationSettings(share=False), AggregationSettings())
    yield from (text.partition(": ")[2] for text in problems)
    if not config.personalization.share or sends_nothing(own):
        yield "this run sends nothing itself; name another one"
