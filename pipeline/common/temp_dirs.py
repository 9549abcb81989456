"""Temporary folders that tell whether their process still lives, so that what killed processes leave can be cleared.

A folder is locked as long as the process that made it holds it; the lock goes with the process, however that ends. The name of
the host is part of a folder's, since hosts that share a `TMPDIR` don't always see each other's locks.
"""

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.locks import locked


@contextlib.contextmanager
def locked_folder(prefix: str) -> Iterator[Path]:
    """A new folder in `TMPDIR`, gone after the block; this host's of the same prefix that nobody holds are cleared first.

    Where a file system knows no locks, nothing is ever cleared.
    """
    parent, prefix = Path(tempfile.gettempdir()), f"{prefix}{socket.gethostname()}-"
    _clear_abandoned(parent, prefix)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(folder, required=False))
            except FileNotFoundError:
                continue
            # Another process may have cleared it before it was locked.
            if not folder.exists():
                continue
            try:
                yield folder
            finally:
                # Another process may be writing there still; what it leaves a later one clears.
                shutil.rmtree(folder, ignore_errors=True)
            return


def _clear_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        remove_unheld(folder)


def remove_unheld(path: Path) -> None:
    """Remove a file or folder unless somebody holds a lock on it, or it can't be removed."""
    with contextlib.suppress(OSError), locked(path, wait=False):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
