"""Implements `ivideogpt-play`: a local web page on which a person drives a world model."""
