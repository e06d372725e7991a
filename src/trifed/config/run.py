"""The configuration of a run, validated from TOML and flags; all mistakes are reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, field_validator, model_validator

from trifed.adapters.settings import AdapterSettings
from trifed.common.dict_merge import deep_difference, deep_merge
from trifed.common.errors import ConfigError
from trifed.common.strict_settings import StrictSettings
from trifed.config.baselines import RATE_FACTOR, baseline_problems, planned, without_learning_rates
from trifed.config.client_training import ClientTables
from trifed.config.combinations import combination_problems, privacy_problems, summary_problems
from trifed.config.metrics import ALWAYS, AT_THE_END, check_metrics
from trifed.config.run_identity import identity_of_settings
from trifed.config.sealing import SealingSettings, sealing_problems
from trifed.config.settings import (
    NO_SINGLE_LABEL,
    DeploymentSettings,
    ModelSettings,
    PrivacySettings,
    TaskName,
    TrackerName,
    TrainingSettings,
    WireSettings,
)
from trifed.config.task_defaults import task_defaults
from trifed.config.toml_files import read_toml
from trifed.config.validation_errors import validation_messages
from trifed.data import DataSettings
from trifed.methods import (
    METHODS,
    AggregationSettings,
    Method,
    Options,
    PersonalizationSettings,
    compose,
    unknown_method,
)
from trifed.methods.local import ALONE
from trifed.methods.personalization import (
    adapter_settings_left_out,
    part_problems,
    parts_left_out,
    sends_nothing,
)
from trifed.methods.sealed import cannot_seal, sealed

DEFAULT_METHOD = "own-prior"
"""The method that was best, or equal to the best, in most measurements of this project."""


class MethodSettings(BaseModel):
    """A method's name and its options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = DEFAULT_METHOD

    def options(self) -> Options:
        """Return the options, validated by the method's own class."""
        return METHODS[self.name].options(**(self.model_extra or {}))


class RunConfig(StrictSettings):
    """All settings of a run."""

    task: TaskName = Field("text-classification", description="Kind of model that is trained.")
    name: str = Field(
        "run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="Name of the run and of its folder under runs/.",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of all random numbers; the same seed gives the same results."
    )
    rounds: int = Field(20, ge=1, description="Rounds of local training and aggregation.")
    participation: float = Field(
        1.0, gt=0, le=1, description="Share of the clients that are selected in each round."
    )
    evaluate_every: int | None = Field(
        None,
        ge=1,
        description="Rounds from one evaluation on validation and test data to the next; the last round is always "
        "evaluated. Unset: five times in the run.",
    )
    keep_checkpoints: int = Field(
        3,
        ge=1,
        description="Number of last rounds whose checkpoints are kept; `--resume RUN --from-round N` goes back "
        "to one of them.",
    )
    controls: bool = Field(
        True,
        description="Also evaluate two simple baselines: a linear probe and class means on the frozen features.",
    )
    metrics: list[str] = Field(
        [],
        description="Also compute these of each client's validation and test data: f1_macro, f1_weighted, "
        "balanced_accuracy, auroc, average_precision, log_loss, brier, calibration_error; of language models "
        "perplexity, and at the end exact_match and rouge_l; of tags of words f1_entities; functions of your own.",
    )
    generated_answers: int = Field(
        100, ge=1, description="Most test examples of a client that exact_match and rouge_l generate answers to."
    )
    metric: str = Field(
        "accuracy",
        description="Metric that decides on the best round, tuned learning rates and the order in comparisons: "
        "accuracy, loss, or one that `metrics` can name.",
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="Round whose models are the result: the last one, or the one with the best `metric` on "
        "validation data, as a mean over clients.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Evaluations without a better `metric` on validation data after which the run ends early. "
        "Unset: it never does.",
    )
    baselines: list[str] | None = Field(
        None,
        description="Runs beside this one, on the same data: names of methods, or 'alone' for this run's method "
        "with nothing shared. Unset: 'alone', which shows what sharing is worth.",
    )
    baseline_rates: list[PositiveFloat] | None = Field(
        None,
        min_length=1,
        description="Learning rates for baselines of a method that sends nothing, such as local; the best one on "
        "validation data is used. Unset: a third of its own rate, its own, and three times its own.",
    )
    trackers: list[TrackerName] = Field(
        [], description="Trackers to which the run is logged: tensorboard, mlflow, wandb. Each needs its extra."
    )
    model: ModelSettings = ModelSettings()
    adapter: AdapterSettings = AdapterSettings()
    data: DataSettings
    method: MethodSettings = MethodSettings()
    training: TrainingSettings = TrainingSettings()
    client_settings: ClientTables = Field(
        {}, description="Training settings of single clients that differ from [training]: [client_settings.NAME]."
    )
    personalization: PersonalizationSettings = PersonalizationSettings()
    aggregation: AggregationSettings = AggregationSettings()
    wire: WireSettings = WireSettings()
    privacy: PrivacySettings = PrivacySettings()
    sealing: SealingSettings = SealingSettings()
    deployment: DeploymentSettings = DeploymentSettings()

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, names: list[str]) -> list[str]:
        check_metrics(names)
        return names

    @field_validator("metric")
    @classmethod
    def _metric_is_known(cls, name: str) -> str:
        check_metrics([name], ALWAYS)
        return name

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        """Expand `method = "local"` to `[method] name = "local"`, and add defaults of task and method."""
        if not isinstance(values, dict):
            return values
        method = _method_table(values.get("method", {}))
        defaults = deep_merge(task_defaults(values), _method_defaults(method))
        return deep_merge(defaults, {**values, "method": method})

    def composed_method(self) -> Method:
        """Return the run's method with the client and server parts that its settings give it, sealed or not."""
        labelled = self.task not in NO_SINGLE_LABEL
        method = compose(METHODS[self.method.name], self.personalization, self.aggregation, labelled)
        noised = self.privacy.summary is not None
        return sealed(method, self.aggregation, noised) if self.sealing.on else method

    def training_of(self, client: str) -> TrainingSettings:
        """Return a client's training settings: those of all clients, with its own in their places."""
        own = self.client_settings.get(client)
        return self.training if own is None else own.over(self.training)

    def with_baselines(self, more: Sequence[str] = ()) -> RunConfig:
        """Return this configuration with the names of its baselines; the usual ones and `more` if given."""
        usual = planned(self.model_copy(update={"baselines": None}) if more else self)
        return self.model_copy(update={"baselines": list(dict.fromkeys([*usual, *more]))})

    def rates_to_try(self, name: str) -> list[float]:
        """Return the learning rates of which the best one is used for a baseline, in rising order.

        A method that shares has one, its own; so has "alone", which differs from the run in sharing only.
        """
        own = self.with_method(name).training.learning_rate
        if name == ALONE or not sends_nothing(METHODS[name]):
            return [own]
        tried = self.baseline_rates or [own / RATE_FACTOR, own, own * RATE_FACTOR]
        return sorted({float(f"{rate:.3g}") for rate in tried})

    @property
    def evaluation_interval(self) -> int:
        """Rounds from one evaluation to the next."""
        return self.evaluate_every or -(-self.rounds // 5)

    @property
    def computed_metrics(self) -> list[str]:
        """Metrics that are computed in every evaluation: those of `metrics`, and the one that decides."""
        named = [name for name in self.metrics if name not in AT_THE_END]
        return list(dict.fromkeys([*named, *({self.metric} - set(ALWAYS))]))

    @property
    def chooses(self) -> bool:
        """True if validation data decide which round's models are the result, or how many rounds there are."""
        return self.keep == "best" or self.patience is not None

    def parts_left_out(self) -> list[str]:
        """Return a sentence for each part or adapter setting that has no meaning for this task or method."""
        method = METHODS[self.method.name]
        left_out = list(adapter_settings_left_out(method, self.adapter))
        if self._parts() == self._default_parts():
            return left_out  # the method's own parts: nothing was set
        labelled = self.task not in NO_SINGLE_LABEL
        return [*left_out, *parts_left_out(method, self.personalization, self.aggregation, labelled)]

    def _parts(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include=set(PARTS))

    def _default_parts(self) -> dict[str, Any]:
        """Return the tables of parts as the method has them, options that stand for a part's setting included."""
        own = _method_defaults(self.method.model_dump())
        return {
            "personalization": PersonalizationSettings(**own.get("personalization", {})).model_dump(mode="json"),
            "aggregation": AggregationSettings(**own.get("aggregation", {})).model_dump(mode="json"),
        }

    def with_method(self, name: str) -> RunConfig:
        """Return this configuration with another method, its default options, and no baselines.

        A setting that has the default of this run's method gets the default of the other one. The name "alone"
        stands for this run's method without its exchange, and so without noise.
        """
        if name == ALONE:
            values = self.model_dump(mode="json", exclude={*OWN, "privacy", "sealing"}, exclude_none=True)
            values["personalization"]["share"] = False
            return RunConfig.model_validate({**values, "baselines": [], "controls": False})
        values = self.model_dump(mode="json", exclude={"method", *OWN}, exclude_none=True)
        values = deep_difference(values, deep_merge(METHODS[self.method.name].defaults, self._default_parts()))
        values.get("personalization", {}).pop("share", None)
        values["client_settings"] = without_learning_rates(values.get("client_settings", {}))
        if cannot_seal(METHODS[name]):
            values.pop("sealing", None)
        return RunConfig.model_validate({**values, "method": name, "baselines": [], "controls": False})

    def run_id(self) -> str:
        """Return twelve hex digits that depend on every setting that changes results; see `run_identity`."""
        return identity_of_settings(self, self._parts(), self._default_parts())


PARTS = ("personalization", "aggregation")
"""Tables of parts that any method can be given."""
OWN = ("baselines", "baseline_rates", "controls")
"""Settings of a run that its baselines do not have."""


def make_config(values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Validate nested settings.

    Raises:
        ConfigError: The settings have mistakes; it lists each one with its dotted name.
    """
    problems = list(_method_problems(_method_table(values.get("method", {}))))
    try:
        config = RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError([*validation_messages(error, RunConfig), *problems], source) from error
    problems += [*baseline_problems(config), *combination_problems(config)]
    if config.method.name in METHODS:
        problems += privacy_problems(config)
    if not problems:
        problems += [*config.method.options().problems(config.adapter), *summary_problems(config)]
        problems += part_problems(METHODS[config.method.name], config.personalization, config.aggregation)
        problems += sealing_problems(config)
    if problems:
        raise ConfigError(problems, source)
    return config


def read_config(path: Path) -> RunConfig:
    """Read and validate a run's TOML file.

    Raises:
        ConfigError: The file cannot be read, or its settings have mistakes.
    """
    return make_config(read_toml(path), str(path))


def overlay(values: Mapping[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values changed by flags, which have dotted names, such as `training.learning_rate`."""
    result = dict(values)
    for name, value in dotted.items():
        head, _, rest = name.partition(".")
        inner = result.get(head, {})
        if head == "method" and rest:
            inner = _method_table(inner)
            if rest == "name" and isinstance(inner, dict) and inner.get("name", DEFAULT_METHOD) != value:
                inner = {}  # the options of another method do not apply
        if not rest:
            result[head] = value
        elif isinstance(inner, Mapping):  # otherwise make_config reports a value instead of a table
            result[head] = overlay(inner, {rest: value})
    return result


def to_toml(config: RunConfig) -> str:
    """Return all settings as TOML, which `trifed run` accepts."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _method_table(method: Any) -> Any:
    """Return `method = "local"` as the table `[method] name = "local"`, and anything else as it is."""
    return {"name": method} if isinstance(method, str) else method


def _method_defaults(method: Any) -> dict[str, Any]:
    """Return the run's settings that a table `[method]` stands for, nested; none if the method is unknown."""
    known = METHODS.get(str(method.get("name", DEFAULT_METHOD))) if isinstance(method, Mapping) else None
    if known is None:
        return {}
    options = {setting: method.get(option) for option, setting in known.setting_names.items()}
    return overlay(known.defaults, {name: value for name, value in options.items() if value is not None})


def _method_problems(method: Any) -> Iterator[str]:
    name = method.get("name", DEFAULT_METHOD) if isinstance(method, dict) else None
    if isinstance(name, str) and name not in METHODS:
        yield f"method.name: {unknown_method(name)}"
    elif isinstance(name, str):
        try:
            METHODS[name].options(**{key: value for key, value in method.items() if key != "name"})
        except ValidationError as error:
            for problem in validation_messages(error, METHODS[name].options):
                default = "" if "name" in method else f"; no method.name is given, so the method is '{name}'"
                yield f"method.{problem}{default}"
