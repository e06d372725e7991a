"""What a federated method is: data, and three small pure functions.

The server of a method keeps a `State`, a flat dictionary of NumPy arrays, so that every method can be written
to a checkpoint and read back without knowing it. Arrays that a person may want to look at carry agreed names:
`weights` (n_clients, n_clients), `similarity_data` and `similarity_model` of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from trifed.settings import AdapterKind, AdapterSettings
from trifed.similarity import Summary

Vector = NDArray[np.float32]
Tensors = dict[str, NDArray[np.float32]]
State = dict[str, NDArray[np.generic]]
Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of the tensors that travel, in the order in which they are packed."""


class SummarySeeds(NamedTuple):
    """`projection` is public and the same for all clients; `own` is the client's."""

    projection: int
    own: int


class Options(BaseModel):
    """Settings of one method; each method subclasses it with its own fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def problems(self, adapter: AdapterSettings) -> list[str]:
        """What does not go together with the run's adapter, one sentence each."""
        return []


Summarise = Callable[[Options, Features, Labels, SummarySeeds], Summary]


@dataclass(frozen=True)
class Upload:
    """What one client sends in one round. `values`: (n_values,), packed after the run's `Layout`."""

    client: int
    round: int
    examples: int
    values: Vector


@dataclass(frozen=True)
class Setting:
    """What the server knows before round 1.

    `start`: (n_values,), the common start of everything that travels. `summaries`: one per client where the
    method makes them.
    """

    clients: int
    layout: Layout
    start: Vector
    summaries: Mapping[int, Summary] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One published method.

    `summarise` makes a client's one-time data summary from the frozen features (n, d) and labels (n,) of its
    training examples; None where the method has no use for one.

    `trains` and `sends` are predicates on parameter names: `….lora_A.weight`, `….lora_B.weight`,
    `….lora_C.weight`, `head.weight`, `head.bias`. What trains and is not sent stays with the client from round
    to round. `download` returns None as long as there is nothing to send to that client.

    `scored` says which model a client would use, hence which one is measured: the one it has just trained
    ("trained"), or the one it receives after aggregation ("received").
    """

    name: str
    citation: str
    adapter: AdapterKind
    trains: Callable[[str], bool]
    sends: Callable[[str], bool]
    scored: Literal["trained", "received"]
    options: type[Options]
    start: Callable[[Options, Setting], State]
    aggregate: Callable[[Options, Setting, State, Sequence[Upload]], State]
    download: Callable[[State, int], Vector | None]
    summarise: Summarise | None = None


def is_core(name: str) -> bool:
    """Is this parameter a core C, shape (r, r)?"""
    return ".lora_C." in name


def is_factor(name: str) -> bool:
    """Is this parameter an outer factor, A (r, d_in) or B (d_out, r)?"""
    return ".lora_A." in name or ".lora_B." in name


def is_head(name: str) -> bool:
    """Does this parameter belong to the task head?"""
    return name.startswith("head.")


def pack(tensors: Mapping[str, NDArray[np.float32]], layout: Layout) -> Vector:
    """All tensors of `layout`, flattened one after the other: (n_values,) float32."""
    if not layout:
        return np.zeros(0, np.float32)
    return np.concatenate([np.asarray(tensors[name], np.float32).ravel() for name, _ in layout])


def unpack(values: Vector, layout: Layout) -> Tensors:
    """The inverse of `pack`."""
    tensors: Tensors = {}
    offset = 0
    for name, shape in layout:
        size = int(np.prod(shape))
        tensors[name] = values[offset : offset + size].reshape(shape)
        offset += size
    return tensors
