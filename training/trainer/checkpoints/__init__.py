"""Writes, checks and loads the checkpoints of a run."""
