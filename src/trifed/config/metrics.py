"""Metrics that settings can name: those of this package, of installed packages, and of a session.

The functions of this package's metrics are in `trifed.federation.training.metrics`. A metric from outside comes by
an entry point of the group `trifed.metrics`, which every process finds, or by `register_metric` from Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import ConfigError, nearest
from trifed.config.settings import MetricName, TagMetricName, TextMetricName

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float64]
Compute = Callable[[Labels, Labels, Probabilities], float]

GROUP = "trifed.metrics"
ALWAYS = ("accuracy", "loss")
"""Scores of every model, which `metric` can name and `metrics` need not."""
AT_THE_END = ("exact_match", "rouge_l")
"""Metrics of generated answers, which are computed once, on test data, when the run is over."""
OWN = (*get_args(MetricName), *get_args(TextMetricName), *get_args(TagMetricName))
"""Metrics of this package."""
TAKEN = {*ALWAYS, "examples", *OWN}
NAME = r"[A-Za-z][A-Za-z0-9_.-]*"
LOADING_ERRORS = (ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError, OSError, ConfigError)
"""Errors that a metric from outside may raise while it is loaded."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        compute: True labels (n,), predicted labels (n,) and probabilities (n, n_labels) → the value; None for a
            metric that has other inputs.
        lower_is_better: True for losses and errors.
        share: True if the value lies in [0, 1] and is shown as a percentage.
    """

    compute: Compute | None
    lower_is_better: bool = False
    share: bool = True


REGISTERED: dict[str, Metric] = {}
"""Metrics from outside this package, by name."""

FROM_PACKAGES: set[str] = set()
"""Those of `REGISTERED` that every process finds."""

BROKEN: dict[str, str] = {}
"""Entry points that could not be loaded: name → reason."""


def register_metric(
    name: str,
    function: Compute,
    *,
    lower_is_better: bool = False,
    share: bool = False,
    replace: bool = False,
) -> None:
    """Let the settings `metrics` and `metric` of this process name a function.

    Args:
        name: Its name: letters, digits, `_`, `.` and `-`, with a letter first.
        function: Called with a client's true labels (n,), predicted labels (n,) and probabilities (n, n_labels);
            returns a number. NaN says that there is none, for example because a label is missing.
        lower_is_better: True for losses and errors.
        share: True if values lie in [0, 1] and should be shown as percentages.
        replace: Allow to replace a metric that was registered before, as when a notebook cell runs again.

    Raises:
        ConfigError: The name is taken or not a name, or the function cannot be called.
    """
    problem = (
        f"got {name!r}, expected a name of letters, digits, '_', '.' and '-'"
        if not re.fullmatch(NAME, name)
        else f"'{name}' is a name of trifed's own; give it another one"
        if name in TAKEN
        else f"'{name}' is registered already; pass replace=True to replace it"
        if name in REGISTERED and not replace
        else f"'{name}': got {type(function).__name__}, expected a function"
        if not callable(function)
        else ""
    )
    if problem:
        raise ConfigError([problem], "register_metric")
    REGISTERED[name] = Metric(function, lower_is_better, share)
    FROM_PACKAGES.discard(name)


def check_metrics(names: Sequence[str], known_besides: Sequence[str] = ()) -> None:
    """Check that metrics are known here and named once.

    Args:
        names: Names from the settings.
        known_besides: Further names that are allowed.

    Raises:
        ValueError: One is not, for pydantic's validators.
    """
    own = [*known_besides, *OWN]
    if not set(names) <= set(own):
        load_metrics_of_packages()
    known = [*own, *REGISTERED]
    for name in names:
        if name in BROKEN:
            raise ValueError(f"got '{name}', which is installed and cannot be loaded: {BROKEN[name]}")
        if name not in known:
            raise ValueError(
                f"got '{name}', expected {_choice(known)}{nearest(name, known)}; a function of your own is added "
                "by trifed.register_metric, or by an entry point of the group trifed.metrics"
            )
        if names.count(name) > 1:
            raise ValueError(f"got '{name}' twice; leave one out")


def without_unknown_metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a finished run's settings without metrics that only another process knows.

    Its models can be used all the same.
    """
    load_metrics_of_packages()
    known = {*ALWAYS, *OWN, *REGISTERED}
    changes = {"metrics": [name for name in values.get("metrics", []) if name in known]}
    decides = {} if values.get("metric", "accuracy") in known else {"metric": "accuracy"}
    return {**values, **changes, **decides}


def not_in_other_processes(names: Sequence[str]) -> Iterator[str]:
    """Yield a message for each metric that only this process knows, for commands that start others."""
    for name in names:
        if name in REGISTERED and name not in FROM_PACKAGES:
            yield (
                f"metrics: '{name}' is registered in this process alone, and a comparison starts others; make it "
                "an entry point of the group trifed.metrics"
            )


@cache
def load_metrics_of_packages() -> None:
    """Register the metrics of installed packages, once."""
    for entry in entry_points(group=GROUP):
        _load(entry)


def _load(entry: EntryPoint) -> None:
    """Register an entry point: a function, or a `Metric`."""
    try:
        found = entry.load()
        metric = found if isinstance(found, Metric) else Metric(found, share=False)
        if metric.compute is None:
            raise TypeError("a Metric without a function")
        register_metric(
            entry.name, metric.compute, lower_is_better=metric.lower_is_better, share=metric.share, replace=True
        )
        FROM_PACKAGES.add(entry.name)
    except LOADING_ERRORS as error:
        BROKEN[entry.name] = f"{type(error).__name__} in {entry.value}: {error}"


def _choice(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:-1]) + f" or {names[-1]!r}"
