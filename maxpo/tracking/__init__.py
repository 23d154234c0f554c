"""Metrics and logs of a run."""
