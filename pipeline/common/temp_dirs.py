"""Temporary folders that show whether their process still lives, so that those of killed processes can be removed.

A process locks its folder while it lives. The folder's name includes the host, since hosts that share a `TMPDIR` may not see
each other's locks.
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
    """Yields a new folder in `TMPDIR`, removed after the block; first removes this host's abandoned ones with the same prefix.

    Without file locks it never removes other folders.
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
            # Another process may have removed it before it was locked.
            if not folder.exists():
                continue
            try:
                yield folder
            finally:
                # Child processes may still write here; a later process removes the rest.
                shutil.rmtree(folder, ignore_errors=True)
            return


def _clear_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        remove_unheld(folder)


def remove_unheld(path: Path) -> None:
    """Removes a file or folder, unless another process has locked it or it can't be removed."""
    with contextlib.suppress(OSError), locked(path, wait=False):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
