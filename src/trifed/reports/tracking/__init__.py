"""Experiment trackers: a run's numbers in TensorBoard or MLflow, while it runs or afterwards.

Both are optional extras. Whatever is written comes from the run's own event log, so a tracker can be filled at any
time, and filling it twice leaves every point there once.
"""

from trifed.reports.tracking.live import LiveTracking, Tracked, track
from trifed.reports.tracking.sinks import require_trackers

__all__ = ["LiveTracking", "Tracked", "require_trackers", "track"]
