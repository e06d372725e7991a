"""What several files of tests share: a model to train with twelve texts, and estimates of what methods send."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from local_training import EXAMPLES

from trifed.adapters.settings import AdapterSettings
from trifed.federation.cost import Cost, estimate_cost
from trifed.methods import METHODS


@pytest.fixture
def shared_model(make_bench):
    return make_bench("local")


@pytest.fixture
def data(shared_model):
    return shared_model.encode(EXAMPLES)


@pytest.fixture(scope="session")
def costs() -> Callable[..., Cost]:
    """`costs("llama-7b", labels=3, only=["ce-lora"], rank=4)`: an estimate, made once.

    `only`: the methods that are counted; all of them take seconds on a model with billions of weights.
    """
    known: dict[str, Cost] = {}

    def get(name: str, labels: int | None = None, only: Sequence[str] = tuple(METHODS), **adapter: object) -> Cost:
        key = repr((name, labels, only, adapter))
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("trifed.federation.cost.METHODS", {method: METHODS[method] for method in only})
                known[key] = estimate_cost(name, AdapterSettings(**adapter), labels)
        return known[key]

    return get
