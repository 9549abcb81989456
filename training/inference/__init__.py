"""Runs a world model frame by frame: sessions, KV cache, sampling, speculative decoding, and fast layers for CPUs."""
