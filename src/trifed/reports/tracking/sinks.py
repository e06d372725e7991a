"""The interface of a tracker, and the packages that each tracker needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from trifed.common.errors import ConfigError
from trifed.config.run import RunConfig, make_config, to_toml
from trifed.config.settings import TrackerName
from trifed.config.toml_files import read_toml
from trifed.federation.run_folder import RunFolder
from trifed.reports.tracking.scalars import Point

NEEDS: dict[TrackerName, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
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
        return cls(folder, make_config(read_toml(place), str(place)))

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
        return dict(_flat("", self.config))

    def toml(self) -> str:
        """Return the resolved configuration as TOML."""
        return to_toml(self.config)


def require_trackers(names: Iterable[TrackerName]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ConfigError: A package is missing; the message has the command that installs it.
    """
    problems = []
    for name in names:
        missing = [package for package in NEEDS[name] if find_spec(package) is None]
        if missing:
            problems.append(
                f"trackers: '{name}' needs {', '.join(missing)}, not installed here: pip install 'trifed[{name}]'"
            )
    if problems:
        raise ConfigError(problems, "trackers")


def _flat(prefix: str, values: BaseModel | Mapping[str, object]) -> Iterable[tuple[str, str]]:
    items = values.model_dump(mode="json") if isinstance(values, BaseModel) else values
    for name, value in items.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield prefix + name, str(value)
