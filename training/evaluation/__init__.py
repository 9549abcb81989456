"""Evaluating a model under the published protocols: episodes in, scores and an evaluation card out."""
