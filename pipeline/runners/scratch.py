"""A folder in `TMPDIR` for all that a run on this machine keeps there, so that nothing stays of it.

Beam, and what it is made of, make temporary files and folders under names of their own, which a run that is killed leaves
behind and which nobody could tell from those of a living one. So a run has one folder, locked as long as it lives, and
everything of it lies there; the next run clears the folders that nobody holds any more. The price: `TMPDIR` is another one
meanwhile, for this process and those that it starts.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "ivideogpt-run-"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is `TMPDIR` within the block and gone after it; those of killed runs beside it are cleared first."""
    parent, environment = Path(tempfile.gettempdir()), os.environ.get("TMPDIR")
    _clear_abandoned(parent)
    folder, descriptor = _made_and_locked(parent)
    try:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        yield folder
    finally:
        tempfile.tempdir = str(parent)
        del os.environ["TMPDIR"]
        if environment is not None:
            os.environ["TMPDIR"] = environment
        # A worker that is still ending may be writing there; what it leaves the next run clears.
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _made_and_locked(parent: Path) -> tuple[Path, int]:
    """A new folder and a descriptor that holds a lock on it; made again where another run cleared it in between."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            # Where a file system knows no locks, nothing is ever cleared.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)


def _clear_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)
