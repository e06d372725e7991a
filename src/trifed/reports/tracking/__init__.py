"""Experiment trackers: a run's numbers in TensorBoard or MLflow, while it runs or afterwards.

Both are optional extras. All points come from the run's own event log, so a tracker can be filled at any time, and
filling it twice does not double a point.
"""

from trifed.reports.tracking.live import LiveTracking, Tracked, track
from trifed.reports.tracking.sinks import require_trackers

__all__ = ["LiveTracking", "Tracked", "require_trackers", "track"]
