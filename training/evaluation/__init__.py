"""Evaluates a model on data sets, with or without a published protocol, and writes an evaluation card."""
