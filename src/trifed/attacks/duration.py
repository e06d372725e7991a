"""How long an audit will take, roughly, from a moment of each kind of work on the user's own model."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from trifed.attacks.images import STEPS, ImageTrials
from trifed.attacks.inference import membership_scores
from trifed.attacks.plan import Plan
from trifed.attacks.target import Subset, TargetClient
from trifed.attacks.texts import SEES, TextTrials

CONTROLS_COST = 1.5
"""A control over the user's method: some train all of the model, some have more that an attacker may not know."""


def minutes(target: TargetClient, trials: TextTrials | ImageTrials, plan: Plan) -> float:
    """Of the whole plan, controls included."""
    levels, rows = len(target.levels()), np.array([0])
    seen = target.gradient(rows)
    target.shared_model.load(target.before)
    longer = STEPS if isinstance(trials, ImageTrials) else 1
    one = _timed(lambda: trials.by_matching(rows, seen, 1)) * longer
    sizes = [batch for batch in trials.rows if batch <= plan.match_up_to]
    seconds = one * plan.iterations * plan.matched * levels * len(SEES) * sum((1 + size) / 2 for size in sizes)
    if isinstance(trials, TextTrials):
        near = _timed(lambda: trials.by_span(1, [rows], [seen]))
        seconds += near * len(trials.rows) * levels * len(SEES) * (1 + plan.trials / 4)
    some = Subset(target.client.train, rows)
    each = _timed(lambda: membership_scores(target, target.before, seen, some))
    seconds += each * plan.clients * 2 * plan.members * levels
    others = [name for name in plan.controls if name != target.config.method.name]
    return seconds / 60 * (1 + CONTROLS_COST * len(others))


def _timed(work: Callable[[], object]) -> float:
    work()  # the first time is longer
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
