"""Two small comparisons, made once, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from in_this_process import in_this_process
from trifed.experiments.compare import ComparisonResult, compare
from trifed.experiments.compare_config import make_comparison


@pytest.fixture
def without_processes() -> Iterator[None]:
    """Comparisons of this test do their runs in this process."""
    with in_this_process():
        yield


@pytest.fixture(scope="session")
def compare_values(toy_values: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`compare_values(seeds=[0])`: nested values for `make_comparison`, `local` and `fedavg-lora`, four rounds."""

    def values(**changes: Any) -> dict[str, Any]:
        run = toy_values(rounds=4)
        for planned in ("name", "controls", "baselines", "baseline_rates"):
            del run[planned]
        return {"name": "small", "methods": ["local", "fedavg-lora"], "seeds": [0, 1], "run": run, **changes}

    return values


@pytest.fixture(scope="session")
def compared(
    compare_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[ComparisonResult, list[dict[str, Any]]]:
    """A finished comparison and what its listener heard. Do not write into its folder."""
    told: list[dict[str, Any]] = []
    folder = tmp_path_factory.mktemp("comparisons") / "small"
    with in_this_process():
        return compare(make_comparison(compare_values()), folder, listener=told.append), told


@pytest.fixture(scope="session")
def tuned(
    compare_values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> ComparisonResult:
    """One method, one seed, its rate chosen from two and one beyond."""
    tuning = {"learning_rates": [1e-5, 1e-4], "seed": 7, "rounds": 2, "extend": 1}
    values = compare_values(name="tuned", methods=["local"], seeds=[0], tuning=tuning)
    with in_this_process():
        return compare(make_comparison(values), tmp_path_factory.mktemp("comparisons") / "tuned")
