"""Engines that have tasks done, here or on a cluster, one file an engine."""
