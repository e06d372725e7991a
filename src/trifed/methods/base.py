"""Parts of a federated method: its data, and small pure functions.

The server of a method keeps a `State`, a flat dictionary of NumPy arrays, so that checkpoints need no knowledge of
it. Three names have a fixed meaning, because reports draw them: `weights`, `similarity_data` and
`similarity_model`, each (n_clients, n_clients).

The functions of federated averaging are here as well. They are the defaults of `Method`: McMahan et al.,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017 (arXiv 1602.05629).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trifed.adapters.settings import AdapterKind, AdapterSettings
from trifed.common.deprecated_names import renamed_attribute
from trifed.common.strict_settings import StrictSettings
from trifed.methods.packing import Layout, Tensors, Vector
from trifed.similarity import Summary, mix

State = dict[str, NDArray[np.generic]]
Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Stage = Literal["start", "trained", "received", "interpolated"]
"""A client's model before round 1, after its training, after a download, or between the last two."""


class SummarySeeds(NamedTuple):
    """Seeds of a data summary: `projection` is public and common to all clients, `own` is the client's."""

    projection: int
    own: int


class Options(StrictSettings):
    """Settings of one method. A method with settings subclasses it."""

    def problems(self, adapter: AdapterSettings) -> list[str]:
        """Return one sentence for each option that does not go together with the run's adapter."""
        return []

    def raw_summary(self) -> bool:
        """Return whether data summaries are of the base's features as they are, and not of their projection."""
        return False


Summarise = Callable[[Options, Features, Labels, SummarySeeds], Summary]
"""Options, features (n, d), labels (n,) and seeds → a client's one-time data summary."""


@dataclass(frozen=True)
class Proximal:
    """A proximal term of local training: loss + ½ `strength` · ‖θ − anchor‖² over what is sent.

    The anchor starts at the received values. With `share` 0 it stays there (FedProx). With a larger `share` it
    moves that part of the way to θ every `every` steps and at the end of the round, and the anchor is sent instead
    of θ (pFedMe).
    """

    strength: float
    share: float = 0.0
    every: int = 1

    @property
    def moves(self) -> bool:
        """True if the anchor moves, and is what the client sends."""
        return self.share > 0


@dataclass(frozen=True)
class Gradient:
    """One client's mean gradient of the adapted layers' frozen weights, taken before round 1.

    `layers`: layer name → gradient, float32, in the shape of the layer's weight.
    """

    client: int
    examples: int
    layers: Tensors


@dataclass(frozen=True)
class Phase:
    """One of a round's trainings, which follow each other.

    Attributes:
        trains: Predicate on parameter names: those that train in it; the others keep their values.
        local_share: Share of the local LoRA beside the global one, 0 to 1, with the adapter `lora-dual`.
    """

    trains: Callable[[str], bool]
    local_share: float


LocalInit = Callable[[Options, Labels, int], Tensors]
"""Options, training labels (n,), number of labels → initial tensors derived from the client's labels."""

SharedProjections = Callable[[Options, Sequence[Gradient], int], Tensors]
"""Options, gradients, rank → `LAYER.lora_A.weight`, `….lora_B.weight` and `….lora_C.weight` of every layer."""


@dataclass(frozen=True)
class Upload:
    """One client's upload of one round.

    `values`: (n_values,), packed in the order of the run's `Layout`. Values of tensors that
    did not train in this round are those that the server sent to the client.
    """

    client: int
    round: int
    examples: int
    values: Vector


@dataclass(frozen=True)
class ServerContext:
    """Facts that a method's server functions may use.

    Attributes:
        clients: Number of clients.
        layout: Names and shapes of what an upload holds.
        start: (n_values,), the initial values that all clients share, packed by `layout`.
        summaries: By client; empty if the method makes none.
        names: The clients' names, in the order of their indices.
        received: Names and shapes of what a download holds, for a method that says what it `receives`.
    """

    clients: int
    layout: Layout
    start: Vector
    summaries: Mapping[int, Summary] = field(default_factory=dict)
    names: Sequence[str] = ()
    received: Layout = ()


OnMembershipChange = Callable[[Options, ServerContext, State, Sequence[int]], State]
"""Options, context, state, clients that start over → state."""


def start_empty(options: Options, context: ServerContext) -> State:
    """Return the state before the first uploads: nothing is known."""
    return {}


def average_by_examples(
    options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]
) -> State:
    """w_j = n_j / Σ n over this round's uploads; mean = Σ w_j θ_j, shape (n_values,)."""
    return average(context, state, uploads, [upload.examples for upload in uploads])


def average_evenly(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """w_j = 1 / number of this round's uploads; mean = Σ w_j θ_j, shape (n_values,)."""
    return average(context, state, uploads, [1] * len(uploads))


def average(context: ServerContext, state: State, uploads: Sequence[Upload], counts: Sequence[int]) -> State:
    """Return the mean of the uploads in proportion to `counts`, (n_uploads,); no uploads change nothing."""
    if not uploads:
        return state
    share = np.array(counts, np.float64) / sum(counts)
    mean = mix(share[None, :], np.stack([upload.values for upload in uploads]))[0]
    row = np.zeros(context.clients)
    row[[upload.client for upload in uploads]] = share
    return {"mean": mean.astype(np.float32), "weights": np.tile(row, (context.clients, 1))}


def download_mean(state: State, client: int) -> Vector | None:
    """Return the one average, (n_values,), which is the same for every client; None before there is one."""
    return state["mean"].astype(np.float32) if "mean" in state else None


@dataclass(frozen=True)
class Method:
    """One federated method. Its server averages by example count unless it says otherwise.

    Attributes:
        name: What users type.
        citation: Paper, venue, arXiv number.
        adapter: What is put on the base model.
        trains: Predicate on parameter names: `….lora_A.weight`, `….lora_B.weight`, `….lora_C.weight`,
            `head.weight`, `head.bias`; without an adapter, the base model's own names.
        sends: The same kind of predicate for what is sent. What trains and is not sent stays with the client.
        receives: The same kind of predicate for what a download holds; None if that is what is sent. A tensor that
            is received and does not train is frozen, and is kept in the client's state.
        evaluated_model: The model that a client uses, hence the one that is evaluated: the model it has just
            trained, the one it receives after aggregation, or an interpolation between the two.
        interpolation: For "interpolated": 0 is the trained model, 1 the received one.
        chooses_interpolation: True if each client chooses the interpolation by the loss of its validation
            examples. `interpolation` then holds for a client with fewer than two of them.
        options: Settings of the method.
        start: Makes the server's state before round 1.
        aggregate: Takes a round's uploads into the state.
        download: Returns the values for one client, packed in the order of `ServerContext.received`, or None while
            there is nothing to send.
        summarise: Makes a client's one-time data summary; None if the method needs none.
        proximal: Makes the proximal term of local training; None for none.
        shared_projections: Makes the frozen A and B, and the initial C, from the clients' first gradients.
        local_init: Makes initial tensors from the client's labels, for tensors that stay with the client.
        personal_head: True for a second head, `personal.weight` and `personal.bias`, whose logits are added, and a
            frozen `prior.bias`; see `HeadedModel.add_personal_head`.
        calibrated: True if the head's weight is scaled on the client's validation examples before the model is
            used, and the label prior then counts the validation labels too.
        on_membership_change: Updates the state when a client joins late, leaves (its summary is empty then) or
            sends a new summary. None if the state holds nothing per client.
        with_aggregation: Makes the method's server follow other `AggregationSettings`; None for a method whose
            server cannot. Methods that average by examples can without saying so.
        setting_names: Option → dotted name of the run's setting that the option stands for.
        turns: Predicates on parameter names, one for each round, in a cycle: only the parameters for which it is
            true train and are sent in that round. Empty: all, in every round.
        phases: Trainings of a round that follow each other, each over all of its steps. Empty: one training.
        local_share: For the adapter `lora-dual`: the share of the local LoRA for an input that is like the
            client's training examples. The adapter's `lora_share` is computed from those, and never trains.
        preset_of: The method without its client and server parts; None for a method without such parts.
        defaults: Settings of a run, nested as in TOML, that hold for this method unless the user says otherwise.
    """

    name: str
    citation: str
    adapter: AdapterKind
    trains: Callable[[str], bool]
    sends: Callable[[str], bool]
    receives: Callable[[str], bool] | None = None
    evaluated_model: Literal["trained", "received", "interpolated"] = "received"
    options: type[Options] = Options
    start: Callable[[Options, ServerContext], State] = start_empty
    aggregate: Callable[[Options, ServerContext, State, Sequence[Upload]], State] = average_by_examples
    download: Callable[[State, int], Vector | None] = download_mean
    summarise: Summarise | None = None
    proximal: Callable[[Options], Proximal] | None = None
    shared_projections: SharedProjections | None = None
    local_init: LocalInit | None = None
    personal_head: bool = False
    calibrated: bool = False
    interpolation: float = 1.0
    chooses_interpolation: bool = False
    on_membership_change: OnMembershipChange | None = None
    with_aggregation: Callable[..., Method] | None = None
    setting_names: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[Callable[[str], bool], ...] = ()
    phases: tuple[Phase, ...] = ()
    local_share: Callable[[Options], float] | None = None
    preset_of: Method | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def in_turn(self, number: int, name: str) -> bool:
        """Return whether a parameter that trains does so in round `number`, counted from 1."""
        return not self.turns or self.turns[(number - 1) % len(self.turns)](name)

    @property
    def takes_downloads_whole(self) -> bool:
        """True if the server counts on each download: a client can neither reject it nor take a share of it.

        So it is with turns, where what rests has to be equal at all clients, and where a download holds tensors
        that do not train.
        """
        return len(self.turns) > 1 or self.receives is not None

    def layouts(self, layout: Layout) -> tuple[Layout, ...]:
        """Return what is sent in each turn, of all that the method sends; without turns all of it."""
        return tuple(tuple(item for item in layout if turn(item[0])) for turn in self.turns) or (layout,)


def directions(method: Method, exchanged: Layout) -> tuple[Layout, Layout]:
    """Return the layouts of an upload and of a download. `exchanged`: that of all tensors sent or received."""
    if method.receives is None:
        return exchanged, exchanged
    sent, received = (
        tuple(item for item in exchanged if holds(item[0])) for holds in (method.sends, method.receives)
    )
    return sent, received


def logged_stage(stage: str) -> str:
    """Return the name of a model's stage in event logs and results, where earlier versions have fixed it."""
    return "between" if stage == "interpolated" else stage


def is_core(name: str) -> bool:
    """Return whether a parameter is a core C, shape (r, r)."""
    return ".lora_C." in name


def is_factor(name: str) -> bool:
    """Return whether a parameter is an outer factor, A (r, d_in) or B (d_out, r)."""
    return ".lora_A." in name or ".lora_B." in name


def is_residual(name: str) -> bool:
    """Return whether a parameter is a residual R, shape (d_out, d_in), of LoRA with residuals."""
    return ".lora_R." in name


def is_rest(name: str) -> bool:
    """Return whether a parameter is a factor of the second LoRA of a mixture, A_r (r, d_in) or B_r (d_out, r)."""
    return ".lora_rest_" in name


def is_mixer(name: str) -> bool:
    """Return whether a parameter is the mixer of two LoRAs, shape (2, d_in)."""
    return ".lora_mixer." in name


def is_local(name: str) -> bool:
    """Return whether a parameter is a factor of the local LoRA beside a global one, A_l or B_l."""
    return ".lora_local_" in name


def is_share(name: str) -> bool:
    """Return whether a parameter is the vector that a local LoRA's share of an input depends on, (1, hidden)."""
    return ".lora_share." in name


def is_head(name: str) -> bool:
    """Return whether a parameter belongs to the task head."""
    return name.startswith("head.")


if not TYPE_CHECKING:  # or mypy would accept any name

    def __getattr__(name: str) -> Any:
        return renamed_attribute(__name__, name)
