"""Write a run to Weights & Biases: one W&B run for each method, in the group of the trifed run."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import Error

from trifed.common.errors import RunError
from trifed.reports.tracking.scalars import Point
from trifed.reports.tracking.trackers import Source

MEMORY = "wandb.json"
"""File in the run's folder: the id of the W&B run, which is continued instead of created again."""
PROJECT = "trifed"
"""Project in W&B, unless WANDB_PROJECT names another."""
OFFLINE = ("offline", "dryrun")
_FAILURES = (Error, OSError)


class WandbSink:
    """Curves and configuration in a W&B run; with WANDB_MODE=offline in files that `wandb sync` uploads.

    Only points and settings are logged: no output of the program, no code, no metrics of the machine. A step that
    W&B has already is not logged again. Offline, the files of an earlier call that were not uploaded are replaced.

    Raises:
        RunError: W&B refuses, nobody is logged in, or nothing can be written.
    """

    def __init__(self, source: Source, into: Path | None) -> None:
        folder = (source.home if into is None else into).absolute()
        number = _memory(source) or secrets.token_hex(4)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mode: Any = (
                os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
            )  # `wandb offline` sets the second
            if mode == "online" and not wandb.login(prompt=False):  # else W&B would ask in the middle of a run
                raise RunError("W&B: nobody is logged in; call `wandb login`, or set WANDB_MODE=offline")
            if mode in OFFLINE:
                for old in (folder / "wandb").glob(f"offline-run-*-{number}"):
                    shutil.rmtree(old)
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                group=source.home.name,
                name=f"{source.home.name} {source.method}",
                id=number,
                dir=str(folder),
                mode=mode,
                config=source.config.model_dump(mode="json"),
                resume=None if mode in OFFLINE else "allow",
                reinit="create_new",
                settings=_settings(),
            )
        except _FAILURES as error:
            raise _error(error) from error
        source.folder.write_json(MEMORY, {"id": number})
        self.place = str(self._run.url or Path(self._run.dir).parent)

    def write(self, points: list[Point]) -> None:
        """Add one round's points."""
        try:
            self._run.log({point.tag: point.value for point in points}, step=points[0].step)
        except _FAILURES as error:
            raise _error(error) from error

    def close(self, finished: bool) -> None:
        """Upload what is left, and close the W&B run as finished or as failed."""
        try:
            self._run.finish(exit_code=0 if finished else 1)
        except _FAILURES as error:
            raise _error(error) from error


def _settings() -> Any:
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _memory(source: Source) -> str:
    found: dict[str, str] = source.folder.read_json(MEMORY, {"id": ""})
    return found["id"]


def _error(error: Exception) -> RunError:
    return RunError(f"W&B: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
