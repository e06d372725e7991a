"""What a federated method is: data, and a few small pure functions.

The server of a method keeps a `State`, a flat dictionary of NumPy arrays, so that checkpoints need not know it.
Those that a person may want to look at carry agreed names: `weights`, `similarity_data` and `similarity_model`,
all (n_clients, n_clients).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from trifed.adapters.settings import AdapterKind, AdapterSettings
from trifed.methods.packing import Layout, Tensors, Vector
from trifed.similarity import Summary

State = dict[str, NDArray[np.generic]]
Features = NDArray[np.float32]
Labels = NDArray[np.int64]


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
class Proximal:
    """A pull towards an anchor in local training: loss + ½ `strength` · ‖θ − anchor‖² over what travels.

    The anchor is what the client received. It stays (FedProx), or takes `share` of the way to θ every `every`
    steps and at the end of the round, and is then what is sent in place of θ (pFedMe).
    """

    strength: float
    share: float = 0.0
    every: int = 1

    @property
    def moves(self) -> bool:
        """Is the anchor what is sent?"""
        return self.share > 0


@dataclass(frozen=True)
class Gradient:
    """One client's mean gradient of the frozen weights of the adapted layers, before round 1.

    `layers`: name of the layer → the shape of its weight, float32.
    """

    client: int
    examples: int
    layers: Tensors


LocalInit = Callable[[Options, Labels, int], Tensors]
"""Options, a client's training labels (n,), number of labels → the start of tensors that stay with the client."""

SharedProjections = Callable[[Options, Sequence[Gradient], int], Tensors]
"""Options, gradients, rank → `LAYER.lora_A.weight`, `….lora_B.weight` and `….lora_C.weight` of every layer."""


@dataclass(frozen=True)
class Upload:
    """What one client sends in one round. `values`: (n_values,), packed after the run's `Layout`."""

    client: int
    round: int
    examples: int
    values: Vector


@dataclass(frozen=True)
class ServerContext:
    """What the server knows before round 1.

    `start`: (n_values,), the common start of everything that travels. `summaries`: one per client where the
    method makes them.
    """

    clients: int
    layout: Layout
    start: Vector
    summaries: Mapping[int, Summary] = field(default_factory=dict)


OnMembershipChange = Callable[[Options, ServerContext, State, Sequence[int]], State]
"""Options, setting, state, clients that begin anew → state."""


@dataclass(frozen=True)
class Method:
    """One published method.

    `summarise` makes a client's one-time data summary from the frozen features (n, d) and labels (n,) of its
    training examples; None where the method has no use for one.

    `trains` and `sends` are predicates on parameter names: `….lora_A.weight`, `….lora_B.weight`,
    `….lora_C.weight`, `head.weight`, `head.bias`; without an adapter, the base model's own names.
    What trains and is not sent stays with the client from round to round. `download` returns None as long as there
    is nothing to send to that client.

    `scored` says which model a client would use, hence which one is measured: the one it has just trained
    ("trained"), the one it receives after aggregation ("received"), or one that lies between (see
    `federation.site`).
    `tempered`: before it is used, its head's weight is scaled to the client's validation examples, and what
    `own_start` made of labels is made of theirs too.

    `proximal` gives local training a pull towards what was received. `frames` makes the frozen A and B, and the
    start of C, from the clients' first gradients, before round 1. `own_start` gives tensors that stay with a
    client another start than the common one.
    `renew`: a client came late, left (its summary is empty then) or told another summary; the state from there on,
    of as many clients as the setting says. None where no row of the state is a client's.
    `defaults` are settings of a run, nested as in its TOML, that hold for it unless the user says otherwise.
    """

    name: str
    citation: str
    adapter: AdapterKind
    trains: Callable[[str], bool]
    sends: Callable[[str], bool]
    evaluated_model: Literal["trained", "received", "between"]
    options: type[Options]
    start: Callable[[Options, ServerContext], State]
    aggregate: Callable[[Options, ServerContext, State, Sequence[Upload]], State]
    download: Callable[[State, int], Vector | None]
    summarise: Summarise | None = None
    proximal: Callable[[Options], Proximal] | None = None
    shared_projections: SharedProjections | None = None
    local_init: LocalInit | None = None
    calibrated: bool = False
    on_membership_change: OnMembershipChange | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


def is_core(name: str) -> bool:
    """Is this parameter a core C, shape (r, r)?"""
    return ".lora_C." in name


def is_factor(name: str) -> bool:
    """Is this parameter an outer factor, A (r, d_in) or B (d_out, r)?"""
    return ".lora_A." in name or ".lora_B." in name


def is_head(name: str) -> bool:
    """Does this parameter belong to the task head?"""
    return name.startswith("head.")
