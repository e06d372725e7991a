"""Trackers: the packages they need, and how they are filled: while a run is under way, or afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

from trifed.common.errors import ConfigError, RunError, TrifedError
from trifed.config.metrics import without_unknown_metrics
from trifed.config.run import RunConfig, make_config
from trifed.config.settings import TrackerName
from trifed.config.toml_files import read_toml
from trifed.federation.run_folder import Event, RunFolder
from trifed.reports.tracking.scalars import Point, Scalars, scalars

Listener = Callable[[Event], None]
NEEDS: dict[TrackerName, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
"""Tracker -> importable names of its extra's packages."""


class Sink(Protocol):
    """One run in one tracker. Writing a point again does not double it."""

    place: str

    def write(self, points: list[Point]) -> None:
        """Add one round's points."""

    def close(self, finished: bool) -> None:
        """Close the run in the tracker. `finished`: the run reached its end."""


@dataclass(frozen=True)
class Source:
    """A run whose numbers go to a tracker. A baseline belongs to its main run."""

    folder: RunFolder
    config: RunConfig

    @classmethod
    def open(cls, path: Path) -> Source:
        """Open an existing run.

        Raises:
            RunError: The folder holds no run.
            ConfigError: Its config.toml is damaged.
        """
        folder = RunFolder.open(path)
        place = folder.path / "config.toml"
        return cls(folder, make_config(without_unknown_metrics(read_toml(place)), str(place)))

    @property
    def home(self) -> Path:
        """Return the folder of the main run, for a baseline and for the main run itself."""
        path = self.folder.path.resolve()
        return path.parents[1] if path.parent.name == "baselines" else path

    @property
    def method(self) -> str:
        """Return the method, which distinguishes a run from its baselines."""
        return self.config.method.name

    def parameters(self) -> dict[str, str]:
        """Return the resolved configuration, flat: `training.epochs` -> "1"."""
        return dict(_flat("", self.config.model_dump(mode="json")))


def require_trackers(names: Iterable[TrackerName]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ConfigError: A package is missing; the message has the command that installs it.
    """
    missing = {name: [package for package in NEEDS[name] if find_spec(package) is None] for name in names}
    problems = [
        f"trackers: '{name}' needs {', '.join(packages)}, not installed here: pip install '.[{name}]' in your "
        "copy of trifed's repository"
        for name, packages in missing.items()
        if packages
    ]
    if problems:
        raise ConfigError(problems, "trackers")


def _flat(prefix: str, values: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield prefix + name, str(value)


def open_sink(name: TrackerName, source: Source, into: Path | None = None) -> Sink:
    """Open a run's place in one tracker; the sinks document the errors."""
    # Imported late: their packages are optional, and slow to import.
    if name == "tensorboard":
        from trifed.reports.tracking.to_tensorboard import TensorBoardSink

        return TensorBoardSink(source, into)
    if name == "wandb":
        from trifed.reports.tracking.to_wandb import WandbSink

        return WandbSink(source, into)
    from trifed.reports.tracking.to_mlflow import MlflowSink

    return MlflowSink(source, into)


class LiveTracking:
    """A listener that passes every event on to `listener`, and each whole round's points to the run's trackers.

    If a tracker fails, the listener gets an event "trouble" and the tracker gets no more points. The run
    continues, and `track` can fill the tracker afterwards.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, listener: Listener) -> None:
        self._source, self._listener = Source(folder, config), listener
        self._sinks: list[Sink] = []
        self._reader, self._finished = Scalars(), False

    def __call__(self, event: Event) -> None:
        """Pass on one event that is already in the log."""
        self._listener(event)
        if event["event"] in ("started", "resumed"):
            self._begin()
        else:
            self._feed(event)

    def _begin(self) -> None:
        """Open the trackers and write the log so far, which is shorter than before in a resumed run."""
        for name in dict.fromkeys(self._source.config.trackers):
            try:
                self._sinks.append(open_sink(name, self._source))
            except TrifedError as error:
                self._report_failure(error)
        for past in self._source.folder.events() if self._sinks else []:
            self._feed(past)

    def _feed(self, event: Event) -> None:
        self._finished = event["event"] == "finished"
        points = self._reader.read(event)
        for sink in list(self._sinks) if points else []:
            try:
                sink.write(points)
            except TrifedError as error:
                self._sinks.remove(sink)
                self._report_failure(error)

    def close(self) -> None:
        """Close the trackers at the end of the run, finished or broken off."""
        for sink in self._sinks:
            try:
                sink.close(self._finished)
            except TrifedError as error:
                self._report_failure(error)

    def _report_failure(self, error: TrifedError) -> None:
        remedy = f"the run continues without it; afterwards: trifed track {self._source.folder.path} --to ..."
        self._listener({"event": "trouble", "text": f"tracker: {error}; {remedy}"})


class Tracked(NamedTuple):
    """Points written for one run. `place`: a folder, or the address of a store."""

    method: str
    rounds: int
    points: int
    place: str


def track(folder: str | Path, name: TrackerName, into: str | Path | None = None) -> list[Tracked]:
    """Write the whole rounds of a finished or broken-off run, and of its baselines, to a tracker.

    Args:
        folder: The run's folder.
        name: "tensorboard", "mlflow" or "wandb".
        into: For TensorBoard the folder above the run's, for MLflow the folder of its `mlflow.db`, for Weights &
            Biases the folder of its files. Default: the run's own folder; for MLflow the store of
            MLFLOW_TRACKING_URI, if that is set.

    Raises:
        ConfigError: The tracker is not installed.
        RunError: There is no run, none of its rounds is whole, or the tracker refuses.
    """
    own = Source.open(Path(folder))
    require_trackers([name])
    inner = [own.folder.path / "baselines" / method for method in own.config.baselines or ()]
    sources = [own, *(Source.open(path) for path in inner if (path / "config.toml").is_file())]
    logs = [(source, source.folder.whole_rounds()) for source in sources]
    if not any(events for _, events in logs):
        raise RunError(
            f"{folder}: no round of this run is complete yet; `trifed run --resume {folder}` continues it"
        )
    return [_write(source, events, name, Path(into) if into else None) for source, events in logs if events]


def _write(source: Source, events: list[Event], name: TrackerName, into: Path | None) -> Tracked:
    sink, batches = open_sink(name, source, into), list(scalars(events))
    for batch in batches:
        sink.write(batch)
    sink.close(events[-1]["event"] == "finished")
    return Tracked(source.method, batches[-1][0].step, sum(map(len, batches)), sink.place)
