"""Experiment trackers: a run's numbers in TensorBoard, MLflow or Weights & Biases, while it runs or afterwards.

All are optional extras. All points come from the run's own event log, so a tracker can be filled at any time, and
filling it twice does not double a point.
"""

from trifed.reports.tracking.trackers import LiveTracking, Tracked, require_trackers, track

__all__ = ["LiveTracking", "Tracked", "require_trackers", "track"]
