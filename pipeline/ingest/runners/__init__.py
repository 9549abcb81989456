"""Engines that run groups of work units, on this machine or on a cluster: one module per engine."""
