"""Logs a run's metrics and videos."""
