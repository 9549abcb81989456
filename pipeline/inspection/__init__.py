"""Inspects shards and sources: prints statistics, verifies shards, and writes a page."""
