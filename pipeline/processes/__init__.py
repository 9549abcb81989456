"""Child processes, signals, and the number of usable processors."""
