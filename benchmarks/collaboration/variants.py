"""What may be exchanged, and with whom: methods of the benchmark's own, put together from parts.

A `Variant` is a `Method` like any other: what trains, what is sent, and a mean within each client's group. The
groups are the planted ones (`planted`), everybody (`all`), or nobody (`alone`); a client keeps what it has just
trained. An `OwnPrior` is a preset of the package, with or without one of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from trifed.adapters.settings import AdapterKind
from trifed.methods import METHODS, Method, ServerContext, State, Upload
from trifed.methods.base import Options, is_core, is_factor, is_head
from trifed.methods.packing import Vector
from trifed.similarity import mix

PARTS: dict[str, Callable[[str], bool]] = {
    "A": lambda name: ".lora_A." in name,
    "B": lambda name: ".lora_B." in name,
    "C": is_core,
    "head": is_head,
}


class GroupOptions(Options):
    """`groups`: the group of each client, in order."""

    groups: list[int]


def mean_of_the_group(options: Options, setting: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """w_ij = 1 / size of i's group for its members, (n_clients, n_clients); all take part every round."""
    groups = np.array(cast(GroupOptions, options).groups)
    same = (groups[:, None] == groups[None]).astype(np.float64)
    weights = same / same.sum(1, keepdims=True)
    values = np.stack([upload.values for upload in sorted(uploads, key=lambda upload: upload.client)])
    return {"mixed": mix(weights, values).astype(np.float32), "weights": weights}


def download_own(state: State, client: int) -> Vector | None:
    return state["mixed"][client].astype(np.float32) if "mixed" in state else None


@dataclass(frozen=True)
class Variant:
    """`adapter`: the kind; `sends`: of A, B, C and head; `own`: settings laid over the run's."""

    adapter: AdapterKind
    sends: tuple[str, ...]
    groups: str = "planted"
    own: dict[str, Any] = field(default_factory=dict)

    def method(self, name: str) -> Method:
        """As the package wants it, under this name."""
        shared_projections = self.adapter == "public-frames"
        return Method(
            name=name,
            citation="a variant of this benchmark",
            adapter=self.adapter,
            trains=lambda param: is_head(param) or is_core(param) or (is_factor(param) and not shared_projections),
            sends=lambda param: any(PARTS[part](param) for part in self.sends),
            evaluated_model="trained",
            options=GroupOptions,
            aggregate=mean_of_the_group,
            download=download_own,
        )


@dataclass(frozen=True)
class OwnPrior:
    """A preset of the package under another name. `own`: settings laid over the run's, such as its parts."""

    preset: str = "own-prior"
    own: dict[str, Any] = field(default_factory=dict)
    groups: str = "found"

    @property
    def adapter(self) -> AdapterKind:
        """The adapter of the preset."""
        return METHODS[self.preset].adapter

    def method(self, name: str) -> Method:
        """The preset under this name."""
        return replace(METHODS[self.preset], name=name)


def grouping(kind: str, planted: Sequence[int]) -> dict[str, list[int]]:
    """The option that says which groups a variant averages in; none where the method finds them."""
    known = {"planted": list(planted), "all": [0] * len(planted), "alone": list(range(len(planted)))}
    return {"groups": known[kind]} if kind in known else {}


def register(variants: dict[str, Variant | OwnPrior]) -> None:
    """Make them known to `make_config` and `run` in this process."""
    METHODS.update({name: variant.method(name) for name, variant in variants.items()})
