"""Distributes the shards of a job over worker processes."""
