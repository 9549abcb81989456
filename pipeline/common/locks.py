"""Locks files and folders for one process at a time. The system removes a lock when its process ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, wait: bool = True, required: bool = True) -> Iterator[int]:
    """Holds a lock on a file or folder; no other process on this machine, or on most network disks, can hold it meanwhile.

    Args:
        path: An existing file or folder.
        wait: Waits until no other process holds the lock.
        required: False continues without a lock if the file system has none.

    Yields:
        A descriptor of the file or folder; a file's is for reading and writing.

    Raises:
        BlockingIOError: Another process holds the lock; only without `wait`.
        OSError: The file can't be opened, or the file system has no locks.
    """
    # Network file systems lock files only if they are open for writing; folders never are.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        with contextlib.nullcontext() if required else contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)
