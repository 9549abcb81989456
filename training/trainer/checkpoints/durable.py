"""Bringing files to disk that a library wrote, so that a power cut after it doesn't lose them."""

import os
from pathlib import Path


def flush_tree(folder: Path, below: bool = True) -> None:
    """Bring the names in a folder to disk, and, unless not `below`, all that lies in it."""
    for path in [*(folder.rglob("*") if below else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
