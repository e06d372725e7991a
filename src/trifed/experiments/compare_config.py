"""Settings of a comparison: those of a run, and what is varied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import ConfigError, nearest
from trifed.config.metrics import not_in_other_processes
from trifed.config.run import RunConfig, make_config
from trifed.config.toml_files import read_toml
from trifed.config.validation_errors import validation_messages
from trifed.data.in_memory import as_file, names_files
from trifed.methods import METHODS, ORIGINS, unknown_method

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
OWN = {"adapter", "aggregation", "method", "personalization", "sealing", "training.learning_rate", "wire"}
"""Settings that may differ between methods; any other would change the conditions or the budget."""
PLANNED = ("name", "seed", "method", "baselines", "baseline_rates", "controls")
"""Settings of a run that the comparison sets."""


class Tuning(BaseModel):
    """Choice of each method's learning rate by the best mean validation accuracy on a grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rates: list[float] = Field(
        [1e-3, 3e-3, 1e-2], min_length=1, description="Learning rates of the grid, in rising order."
    )
    seed: int = Field(100, ge=0, description="Seed of the tuning runs; not a reported one.")
    rounds: int | None = Field(None, ge=1, description="Rounds of the tuning runs; those of a run unless given.")
    extend: int = Field(2, ge=0, description="Further rates for a method that is best at an end of the grid.")
    partitions: dict[str, str] = Field(
        {}, description="Partition whose rates are used, by partition that uses them."
    )


class CompareConfig(BaseModel):
    """Settings that decide a comparison's numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("comparison", pattern=NAME, max_length=100, description="Name of its folder under runs/.")
    methods: list[str] = Field(min_length=1, description="Compared methods; the first one is the reference.")
    seeds: list[int] = Field([0, 1], min_length=1, description="Seeds; each decides a split and a start.")
    references: list[str] = Field(
        [], description="Methods that all others are compared with; the first one unless given."
    )
    target: float | None = Field(
        None, gt=0, le=1, description="Accuracy for 'bytes to target'; the first method's mean unless given."
    )
    run: dict[str, Any] = Field(description="Settings of every run, as for trifed run.")
    partitions: dict[str, dict[str, Any]] = Field({}, description="Changes to [run] by partition.")
    method_settings: dict[str, dict[str, Any]] = Field({}, description="Further changes by method.")
    tuning: Tuning | None = None

    @field_validator("run")
    @classmethod
    def _tables_are_written_to_files(cls, run: dict[str, Any]) -> dict[str, Any]:
        """Write tables in memory to files, because the runs are other processes."""
        data = run.get("data")
        if not isinstance(data, dict):
            return run
        tables = {key: data[key] for key in ("source", "test") if data.get(key) is not None}
        files = {key: as_file(table) for key, table in tables.items() if not names_files(table)}
        return {**run, "data": {**data, **files}}

    def partition_names(self) -> list[str]:
        """Return the names of all partitions; 'all' if none is given."""
        return list(self.partitions) or ["all"]

    def tuned_on(self, partition: str) -> str | None:
        """Return the partition on which a partition's learning rates are chosen; None without tuning."""
        return self.tuning.partitions.get(partition, partition) if self.tuning else None

    def run_values(self, partition: str, method: str) -> dict[str, Any]:
        """Return the nested settings of one run, without its seed."""
        own = deep_merge(self.method_settings.get(method, {}), {"method": {"name": method}})
        return deep_merge(deep_merge(self.run, self.partitions.get(partition, {})), own)

    def job(self, kind: str, partition: str, method: str, folder: str, changes: Mapping[str, Any]) -> Job:
        """Return one run with further changes to its settings, in KIND/PARTITION/METHOD/FOLDER."""
        config = make_config(deep_merge(self.run_values(partition, method), {"baselines": [], **changes}))
        return Job(partition, method, config, Path(kind, partition, method, folder))


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes:
        partition: Name of the partition.
        method: Name of the method.
        config: All settings of the run.
        folder: Its folder, relative to the comparison's.
    """

    partition: str
    method: str
    config: RunConfig
    folder: Path

    def __str__(self) -> str:
        return f"{self.partition} · {self.method} · seed {self.config.seed}"


def make_comparison(values: Mapping[str, Any], source: str = "comparison") -> CompareConfig:
    """Validate nested values.

    Raises:
        ConfigError: Values are not valid; it lists every mistake by its dotted name.
    """
    try:
        config = CompareConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(validation_messages(error, CompareConfig), source) from error
    problems = list(_problems(config)) or list(dict.fromkeys(_run_problems(config)))
    if problems:
        raise ConfigError(problems, source)
    return config


def read_comparison(path: Path) -> CompareConfig:
    """Read a comparison from its TOML file.

    Raises:
        ConfigError: The file cannot be read, or has mistakes, all of which are listed.
    """
    return make_comparison(read_toml(path), str(path))


def _problems(config: CompareConfig) -> Iterator[str]:
    varied: dict[str, list[Any]] = {"methods": config.methods, "seeds": config.seeds}
    for place, values in varied.items():
        for value in dict.fromkeys(v for v in values if values.count(v) > 1):
            yield f"{place}: {value!r} is there twice; leave one out"
    yield from _method_problems(config)
    for name in config.partitions:
        if not re.match(NAME, name):
            yield f"partitions: '{name}' is a folder's name too; use letters, digits, '.', '_' and '-'"
    for place, settings in (("run", config.run), *((f"partitions.{n}", p) for n, p in config.partitions.items())):
        for key in (key for key in PLANNED if key in settings):
            yield f"{place}.{key}: the comparison sets this itself; leave it out"
    if config.tuning:
        yield from _tuning_problems(config, config.tuning)


def _method_problems(config: CompareConfig) -> Iterator[str]:
    for place, names in (("methods", config.methods), ("method_settings", list(config.method_settings))):
        for name in names:
            if name not in METHODS:
                yield f"{place}: {unknown_method(name)}"
            elif name in ORIGINS and ORIGINS[name].kind == "python":
                yield (
                    f"{place}: '{name}' is registered in this process alone, and a comparison starts others; put "
                    f"it into a file that defines METHOD and give --method-file, or call use_method_files([PATH])"
                )
    yield from _unknown("references", config.references, config.methods)
    for method, settings in config.method_settings.items():
        for key in _dotted(settings):
            if not any(key == own or key.startswith(own + ".") for own in OWN) or key == "method.name":
                yield (
                    f"method_settings.{method}.{key}: conditions and budget are equal for all methods; a method "
                    f"may have its own {', '.join(sorted(OWN))}; put this under [run] or [partitions.NAME]"
                )


def _tuning_problems(config: CompareConfig, tuning: Tuning) -> Iterator[str]:
    for settings in (config.run, *config.partitions.values()):
        for client, own in dict(settings.get("client_settings", {})).items():
            if "learning_rate" in own:
                yield (
                    f"client_settings.{client}.learning_rate: this client would have the same rate in all tuning "
                    f"runs; leave it out, or leave [tuning] out"
                )
    if tuning.seed in config.seeds:
        yield f"tuning.seed: {tuning.seed} is a reported seed; tuning on it would flatter, take another"
    rates = tuning.learning_rates
    if any(rate <= 0 for rate in rates) or sorted(set(rates)) != rates:
        yield f"tuning.learning_rates: got {rates}, expected rising numbers above 0"
    yield from _unknown("tuning.partitions", [*tuning.partitions, *tuning.partitions.values()], config.partitions)
    for name, source in tuning.partitions.items():
        if tuning.partitions.get(source, source) != source:
            yield f"tuning.partitions.{name}: '{source}' uses the rates of another one; name that one instead"


def _run_problems(config: CompareConfig) -> Iterator[str]:
    for partition in config.partition_names():
        for method in config.methods:
            try:
                run = make_config(config.run_values(partition, method))
                yield from not_in_other_processes(run.computed_metrics)
            except ConfigError as error:
                place = f"partitions.{partition}, {method}" if config.partitions else method
                yield from (f"{problem} (in {place})" for problem in error.problems)


def _unknown(place: str, names: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys(names):
        if name not in known:
            yield f"{place}: '{name}' is not compared; known here: {', '.join(known)}{nearest(name, known)}"


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name
