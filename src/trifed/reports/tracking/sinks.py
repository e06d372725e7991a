"""Where points go: what every tracker offers, and what each needs to be installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from trifed.common.errors import ConfigError
from trifed.config.run import RunConfig, make_config, read_toml, to_toml
from trifed.config.settings import TrackerName
from trifed.federation.run_folder import RunFolder
from trifed.reports.tracking.scalars import Point

NEEDS: dict[TrackerName, tuple[str, ...]] = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""Packages of each tracker's extra, as they are imported."""


class Sink(Protocol):
    """One run in one tracker. Points that are already there are not doubled."""

    place: str

    def write(self, points: list[Point]) -> None:
        """Add one round's points."""

    def close(self, finished: bool) -> None:
        """No more will come; `finished`: the run reached its end."""


@dataclass(frozen=True)
class Source:
    """A run whose numbers are wanted elsewhere. A baseline belongs to the run beside which it was made."""

    folder: RunFolder
    config: RunConfig

    @classmethod
    def open(cls, path: Path) -> Source:
        """An existing run.

        Raises:
            RunError: the folder holds no run.
            ConfigError: its config.toml is damaged.
        """
        folder = RunFolder.open(path)
        place = folder.path / "config.toml"
        return cls(folder, make_config(read_toml(place), str(place)))

    @property
    def home(self) -> Path:
        """The folder of the run that this one stands beside, or its own."""
        path = self.folder.path.resolve()
        return path.parents[1] if path.parent.name == "baselines" else path

    @property
    def method(self) -> str:
        """Which tells a run from its baselines."""
        return self.config.method.name

    def parameters(self) -> dict[str, str]:
        """The resolved configuration, flat: `training.epochs` → "1"."""
        return dict(_flat("", self.config))

    def toml(self) -> str:
        """The resolved configuration."""
        return to_toml(self.config)


def require_trackers(names: Iterable[TrackerName]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ConfigError: with the command that installs what is missing.
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
