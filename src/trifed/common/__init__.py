"""Errors, files and small helpers that every other part may use."""
