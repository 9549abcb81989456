"""Reads TFRecord files and their examples, without TensorFlow."""
