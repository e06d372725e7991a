"""From a run's events to numbers, tables and pictures."""
