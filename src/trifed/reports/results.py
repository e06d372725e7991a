"""Results of methods side by side: the one form in which reports read a comparison, or a run with its baselines.

The classes mirror `comparison.json`; unknown fields are left out, missing numbers are None. Accuracies lie in
[0, 1]; bytes include headers and envelopes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trifed.federation.training.metrics import metric_named


def _both_or_none(value: Any) -> Any:
    """Replace an interval that lacks an end by None."""
    return None if isinstance(value, list | tuple) and None in value else value


Number = float | None
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_both_or_none)]
Matrix = NDArray[np.float64]
PER_CLIENT = ("up_per_round", "down_per_round", "once_up", "once_down")
Manifest = dict[str, dict[str, float]]
"""Tensor -> one of `PER_CLIENT`, the fields of `Traffic` -> bytes per client."""
RATIOS = ("R²",)
"""Metrics in the place of accuracy that are no percentages."""
PLAIN_LORA = ("bits", "fedavg_lora_would_send", "fedavg_lora_would_send_at_32_bits")
"""Fields of a summary's bytes that compare a run with plain LoRA."""
PLATEAU = 0.01
"""A curve has reached a plateau if it rises by less than this over its last quarter."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Deciding(_Record):
    """The metric that decides on the order of methods. `share`: it lies in [0, 1] and is shown as a percentage."""

    name: str = "accuracy"
    lower_is_better: bool = False
    share: bool = True

    @classmethod
    def of(cls, name: str) -> Deciding:
        """Return a metric by its name; one that is not known here counts as a number of which more is better."""
        known = metric_named(name)
        lower, share = (known.lower_is_better, known.share) if known else (False, False)
        return cls(name=name, lower_is_better=lower, share=share)


class Spread(_Record):
    """Test accuracy, or another metric, over the clients.

    Attributes:
        interval: 95 % interval of the mean, if one was computed.
        client_accuracy: One number for each client, in the partition's order; empty if unknown.
    """

    mean: Number = None
    interval: Interval = None
    worst: Number = None
    best: Number = None
    client_accuracy: list[Number] = []


class Traffic(_Record):
    """Bytes: means per client of one round and of what travels once, before round 1; `total` of everything."""

    up_per_round: float = 0.0
    down_per_round: float = 0.0
    once_up: float = 0.0
    once_down: float = 0.0
    total: float = 0.0


class Point(_Record):
    """One evaluated round. `bytes`: all uploads and downloads so far."""

    round: int
    mean: Number = None
    worst: Number = None
    best: Number = None
    valid_mean: Number = None
    training_loss: Number = None
    bytes: Number = None
    metrics: dict[str, Number] = {}
    valid_metrics: dict[str, Number] = {}


class Plateau(_Record):
    """Rise of the mean accuracy from the third to the last quarter of the rounds."""

    rise_in_last_quarter: Number = None
    reached: bool | None = None

    @classmethod
    def of(cls, means: Sequence[Number]) -> Plateau:
        """Compare the last two quarters of the evaluated rounds; both fields are None with fewer than four."""
        known = [mean for mean in means if mean is not None]
        quarter = len(known) // 4
        if not quarter:
            return cls()
        rise = float(np.mean(known[-quarter:]) - np.mean(known[-2 * quarter : -quarter]))
        return cls(rise_in_last_quarter=rise, reached=rise < PLATEAU)


class MethodResult(Spread):
    """One method on one partition.

    Attributes:
        seeds: Seeds whose runs are finished; empty if they are those of the partition.
        sd: Standard deviation of the mean over seeds.
        perplexity: Mean over clients; language models only.
        bits: Bits of a value in its messages; None if they were not written down.
        fedavg_lora_would_send: All bytes of plain federated LoRA for the same rounds and bits, if counted.
        fedavg_lora_would_send_at_32_bits: The same at 32 bits a value.
        metrics: Further metrics by name; `client_accuracy` of each is the metric's own value of each client.
        kept_round: Round whose models are the result, if it was chosen; a mean over seeds.
        kept_rounds: That round for each seed.
        classes: Rows of client, class, precision, recall, F1 and test examples; of a run alone.
        fewest_in_a_sum: Clients of the smallest sum of a sealed run; 0 if it had none, None if it was not sealed.
        privacy: Privacy budget that was spent, or will be at most, one entry for each relation of data sets.
    """

    citation: str = ""
    seeds: list[int] = []
    learning_rate: Number = None
    evaluated_model: Literal["trained", "received", "between"] | None = Field(default=None, alias="scored")
    sd: Number = None
    weighted_mean: Number = None
    perplexity: Number = None
    mean_trained: Number = None
    mean_received: Number = None
    bytes: Traffic = Traffic()
    rounds_to_target: Number = None
    bytes_to_target: Number = None
    bits: int | None = None
    fedavg_lora_would_send: Number = None
    fedavg_lora_would_send_at_32_bits: Number = None
    seconds: Number = None
    curve: list[Point] = []
    plateau: Plateau | None = None
    metrics: dict[str, Spread] = {}
    kept_round: Number = None
    kept_rounds: list[int] = []
    classes: list[dict[str, Any]] = []
    fewest_in_a_sum: int | None = None
    privacy: list[dict[str, Any]] = []

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, values: Any) -> Any:
        """Take the bytes of plain LoRA from those of the method; before `bits` was written down, at 32 bits."""
        if not isinstance(values, dict):
            return values
        sent = values["bytes"] if isinstance(values.get("bytes"), dict) else {}
        values = {**{name: sent[name] for name in PLAIN_LORA if name in sent}, **values}
        if "bits" not in values and "fedavg_lora_would_send" in values:
            values["fedavg_lora_would_send_at_32_bits"] = values.pop("fedavg_lora_would_send")
        return values


class Difference(_Record):
    """Mean of the paired differences of two methods' accuracies. `seeds`: those that both have; may be empty."""

    mean: Number = None
    interval: Interval = None
    seeds: list[int] = []


def paired(one: Sequence[Number], other: Sequence[Number]) -> Difference | None:
    """Return the mean difference over clients and its 95 % t interval; None with fewer than three clients."""
    pairs = zip(one, other, strict=False)
    gaps = np.array([a - b for a, b in pairs if a is not None and b is not None])
    if len(gaps) < 3:
        return None
    from scipy import stats  # takes long to import

    mean = float(gaps.mean())
    reach = float(stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    return Difference(mean=mean, interval=(mean - reach, mean + reach))


class Partition(_Record):
    """One split of one data set over clients, and the methods that ran on it.

    Attributes:
        seeds: Seeds that at least one method has finished.
        metric: What accuracy means.
    """

    seeds: list[int] = []
    metric: str = "accuracy"
    deciding: Deciding = Deciding()
    clients: list[str] = []
    target: Number = None
    tuned_on: str | None = None
    methods: dict[str, MethodResult] = {}
    controls: dict[str, Spread] = {}
    differences: dict[str, Difference] = {}

    @property
    def is_percentage(self) -> bool:
        """Return True if accuracies are shown as percentages; R² is not."""
        return self.metric not in RATIOS

    @property
    def scale(self) -> float:
        """Return the factor from an accuracy to the number that is shown."""
        return 100.0 if self.is_percentage else 1.0

    @property
    def shown_metric(self) -> str:
        """Return the name of the metric with its unit, as on an axis."""
        return f"test {self.metric}{', %' if self.is_percentage else ''}"

    def shown(self, value: float) -> str:
        """Format an accuracy: `83.2 %`; `0.83` for R²."""
        return f"{100 * value:.1f} %" if self.is_percentage else f"{value:.2f}"

    def difference(self, one: str, other: str) -> Difference | None:
        """Return `one` minus `other`, as computed, else from the clients' accuracies.

        None with too few clients, and where the methods have other seeds and so other splits.
        """
        found = self.differences.get(f"{one} minus {other}")
        turned = self.differences.get(f"{other} minus {one}")
        if found is not None:
            return found
        if turned is None and self.methods[one].seeds != self.methods[other].seeds:
            return None
        if turned is None:
            return paired(self.methods[one].client_accuracy, self.methods[other].client_accuracy)
        return Difference(
            mean=None if turned.mean is None else -turned.mean,
            interval=None if turned.interval is None else (-turned.interval[1], -turned.interval[0]),
            seeds=turned.seeds,
        )

    @property
    def unequal_seeds(self) -> bool:
        """True if some methods have seeds that others lack."""
        return len({tuple(found.seeds) for found in self.methods.values()}) > 1


class Missing(_Record):
    """A run that is not finished. `state`: for example "not started" or "running in round 3 of 20"."""

    partition: str
    method: str
    seed: int
    state: str


class Rates(_Record):
    """Learning rate, as text -> accuracy on validation data; and the rate that was chosen."""

    grid: dict[str, Number] = {}
    chosen: Number = None


class Tuning(_Record):
    """Search for each method's learning rate on one partition, by the best value of a metric."""

    deciding: Deciding = Deciding()
    methods: dict[str, Rates] = {}


class Study(_Record):
    """Contents of `comparison.json`. `between_sites`: data were at sites, so nothing ran beside the one method."""

    name: str
    methods: list[str]
    partitions: list[str] = []
    seeds: list[int] = []
    finished: bool = True
    between_sites: bool = False
    configuration: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    missing: list[Missing] = []
    tuning: dict[str, Tuning] = {}
    results: dict[str, Partition] = {}


@dataclass(frozen=True)
class Details:
    """Details of one partition that only the runs' own folders hold.

    Attributes:
        split: Contents of split.json.
        matrices: Method -> name -> (n_clients, n_clients), of `round`.
        manifest: Method -> tensor -> bytes per client by column of `Traffic`.
        before: Client -> accuracy at the common start.
        diverged: Clients whose training diverged, as `CLIENT with METHOD`.
        warned: Uploads that a guard reported and did not stop, as `CLIENT with METHOD (SETTING)`.
    """

    split: dict[str, Any] | None = None
    matrices: dict[str, dict[str, Matrix]] = field(default_factory=dict)
    round: int = 0
    manifest: dict[str, Manifest] = field(default_factory=dict)
    before: dict[str, float | None] = field(default_factory=dict)
    warned: tuple[str, ...] = ()
    diverged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A folder that was read. `details`: by partition; `resume_command`: empty if finished."""

    path: Path
    kind: Literal["run", "comparison"]
    study: Study
    details: dict[str, Details]
    resume_command: str = ""
