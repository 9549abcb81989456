"""Clips of episodes: which frames, which transforms, and their decoding."""
