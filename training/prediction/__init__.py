"""Predicting clips of episodes a user names: opening them, choosing clips as the model's own recipe does, predicting these."""
