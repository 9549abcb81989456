"""Flushes files that a library wrote to disk, so that a power cut can't lose them."""

import os
from pathlib import Path


def flush_tree(folder: Path, below: bool = True) -> None:
    """Flushes the names in a folder to disk; with `below`, also everything inside it."""
    for path in [*(folder.rglob("*") if below else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
