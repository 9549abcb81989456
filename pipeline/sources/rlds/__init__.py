"""Reads and writes RLDS data sets, without TensorFlow."""
