"""Write a run as TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from trifed.common.errors import RunError
from trifed.config.run import to_toml
from trifed.reports.tracking.scalars import Point
from trifed.reports.tracking.trackers import Source


class TensorBoardSink:
    """Event files in `INTO/RUN/METHOD`, or in the run's own folder under `tensorboard/METHOD`.

    A file cannot be continued, so an earlier one of the same run is replaced: the log has all of its points.

    Raises:
        RunError: The folder holds another run's files, or nothing can be written there.
    """

    def __init__(self, source: Source, into: Path | None) -> None:
        folder = source.home / "tensorboard" if into is None else into / source.home.name
        suffix = f".trifed-{source.config.run_id()}"
        self.place, self._target = str(folder), folder / source.method
        others = [path for path in self._target.glob("*tfevents*") if not path.name.endswith(suffix)]
        if others:
            raise RunError(
                f"{self._target}: holds the event files of another run, such as {others[0].name}; "
                f"remove them or give another --into"
            )
        try:
            for old in self._target.glob(f"*{suffix}"):
                old.unlink()
            self._writer = SummaryWriter(str(self._target), filename_suffix=suffix)
        except OSError as error:
            raise self._error(error) from error
        self._writer.add_text("configuration", f"```toml\n{to_toml(source.config)}```")

    def write(self, points: list[Point]) -> None:
        """Add one round's points and flush them to readers."""
        try:
            for point in points:
                self._writer.add_scalar(point.tag, point.value, point.step)
            self._writer.flush()
        except OSError as error:
            raise self._error(error) from error

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._writer.close()

    def _error(self, error: OSError) -> RunError:
        return RunError(f"{self._target}: {error.strerror or error}; no event file can be written there")
