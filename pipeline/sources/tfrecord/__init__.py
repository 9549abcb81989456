"""TFRecord files and the examples in them, read without TensorFlow."""
