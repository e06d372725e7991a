"""The baselines of a run: methods that are trained beside it, on the same data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trifed.methods import METHODS, AggregationSettings, PersonalizationSettings, unknown_method
from trifed.methods.local import ALONE
from trifed.methods.personalization import part_problems, sends_nothing

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


def _problems_of_alone(config: RunConfig) -> Iterator[str]:
    """Yield why a run's method cannot be trained alone, or is trained alone already."""
    own = METHODS[config.method.name]
    problems = part_problems(own, PersonalizationSettings(share=False), AggregationSettings())
    yield from (text.partition(": ")[2] for text in problems)
    if not config.personalization.share or sends_nothing(own):
        yield "this run sends nothing itself; name another one"
