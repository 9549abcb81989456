"""Processes of one machine: children that end with their parents, interrupts, processors that may be used."""
