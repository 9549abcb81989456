"""Clips of episodes: sampling, decoding and transforms."""
