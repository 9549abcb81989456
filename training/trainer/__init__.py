"""Trains the transformer: setup, steps, checkpoints, validation and logs."""
