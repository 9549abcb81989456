"""Predicts clips of the episodes that a user names: opens them, cuts clips as the model was trained, and predicts."""
