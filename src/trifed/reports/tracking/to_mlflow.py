"""Write a run to an MLflow store: an experiment with its name, and one MLflow run for each method."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

# A library whose users watch what leaves the building does not report to anybody by default.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from sqlalchemy.exc import SQLAlchemyError

from trifed.common.errors import RunError
from trifed.reports.tracking.scalars import Point
from trifed.reports.tracking.trackers import Source

MEMORY = "mlflow.json"
"""File in the run's folder: store -> id of the MLflow run, which is continued instead of created again."""

SQLITE = "sqlite:///"

_FAILURES = (MlflowException, SQLAlchemyError, OSError)

LONGEST = 200
"""Most characters of a client's name in the name of a metric, which may have 250."""

METRICS, PARAMETERS = 1000, 100
"""The most items that MLflow accepts at once."""


class MlflowSink:
    """Metrics and parameters in `INTO/mlflow.db`, in the store of MLFLOW_TRACKING_URI, or in the run's folder.

    MLflow keeps one of two metrics that agree in name, step, time and value. The log holds no times, so all points
    have the time at which the MLflow run was created, and writing them again changes nothing.

    Raises:
        RunError: MLflow refuses.
    """

    def __init__(self, source: Source, into: Path | None) -> None:
        self.place = _store(source, into)
        self._names: dict[str, str] = {}
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        try:
            self._client = MlflowClient(self.place)
            self._run = self._continued(source) or self._new(source)
            self._client.update_run(self._run.info.run_id, status="RUNNING")
        except _FAILURES as error:
            raise self._error(error) from error

    def _continued(self, source: Source) -> Run | None:
        known = _memory(source).get(self.place)
        if known is None:
            return None
        try:
            run = self._client.get_run(known)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return None  # the store was emptied since
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _new(self, source: Source) -> Run:
        name, tags = source.home.name, {"trifed.run": source.config.run_id()}
        known = self._client.get_experiment_by_name(name)
        number = known.experiment_id if known else self._client.create_experiment(name, _artifacts(self.place))
        run = self._client.create_run(number, run_name=source.method, tags=tags)
        params = [Param(key, value) for key, value in source.parameters().items()]
        for batch in _batches(params, PARAMETERS):
            self._client.log_batch(run.info.run_id, params=batch)
        source.folder.write_json(MEMORY, {**_memory(source), self.place: run.info.run_id})
        return run

    def write(self, points: list[Point]) -> None:
        """Add one round's points."""
        now = self._run.info.start_time
        metrics = [Metric(self._name(point.tag), point.value, now, point.step) for point in points]
        try:
            for batch in _batches(metrics, METRICS):
                self._client.log_batch(self._run.info.run_id, metrics=batch)
        except _FAILURES as error:
            raise self._error(error) from error

    def close(self, finished: bool) -> None:
        """Mark the MLflow run as finished, or as killed."""
        try:
            self._client.set_terminated(self._run.info.run_id, "FINISHED" if finished else "KILLED")
        except _FAILURES as error:
            raise self._error(error) from error

    def _name(self, tag: str) -> str:
        """Return a metric name that MLflow accepts; a number keeps clients of equal names apart."""
        if tag not in self._names:
            kind, _, rest = tag.partition("/")
            allowed = re.sub(r"^\.*$|[^\w.\- ]", "_", rest)[:LONGEST]
            plain = f"{kind}/{allowed}"
            numbered = (plain if number == 1 else f"{plain}_{number}" for number in count(1))
            self._names[tag] = next(name for name in numbered if name not in self._names.values())
        return self._names[tag]

    def _error(self, error: Exception) -> RunError:
        return RunError(f"MLflow at {self.place}: {str(error).strip().splitlines()[0]}")


def _store(source: Source, into: Path | None) -> str:
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if into is None and given:
        return given
    folder = (source.home if into is None else into).absolute()
    path = folder / "mlflow.db"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # MLflow itself retries for minutes if the file is no database.
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")
    except (OSError, sqlite3.Error) as error:
        raise RunError(f"{path}: no MLflow store can be kept there ({error}); give another folder") from error
    return f"{SQLITE}{path}"


def _artifacts(store: str) -> str | None:
    """Return the folder for an experiment's files; MLflow's own default is the working directory."""
    path = Path(store.removeprefix(SQLITE))
    return (path.parent / "mlflow-artifacts").as_uri() if store.startswith(SQLITE) else None


def _memory(source: Source) -> dict[str, str]:
    known: dict[str, str] = source.folder.read_json(MEMORY) if (source.folder.path / MEMORY).is_file() else {}
    return known


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
