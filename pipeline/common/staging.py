"""Where files are written before they appear under their names: beside a local file, in `TMPDIR` for an object store.

What is being written is locked as long as its writer lives, so that what killed writers left is told from the work of living
ones and cleared. On a local disk every file has a hidden folder to itself, found without looking at all names, of which there
may be many. Where a file system knows no locks, nothing is ever cleared.
"""

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.errors import StorageError
from pipeline.common.locks import locked
from pipeline.common.temp_dirs import locked_folder, remove_unheld

# Names that end so are not for readers.
PARTIAL = ".partial"
# What a local disk says that takes no more, or not from this user.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def staged_on_disk(final: Path) -> Iterator[Path]:
    """Yield a file name beside `final`; when the block ends well, what was written there becomes `final` by a rename.

    If the block raises, or the process dies, `final` is as it was. What a killed writer of the same file left is removed by
    the next one that ends well; what a living one is writing stays, and the last one to end wins.

    Raises:
        StorageError: The disk is full, or this user may not write there.
    """
    own = final.with_name(f".{final.name}{PARTIAL}")
    with _refusal_explained(str(final), final.parent, own), _locked_file(own) as (file, mode):
        yield file
        with file.open("rb") as written:
            os.fsync(written.fileno())
        # Some writers make files that only their owner reads; shards are for everyone whom the umask lets in.
        file.chmod(mode)
        file.replace(final)
        _remove_abandoned(own)


@contextlib.contextmanager
def staged_for_upload(url: str, name: str) -> Iterator[Path]:
    """Yield a file name in a folder of `TMPDIR` that goes when the block ends.

    Args:
        url: Where the file is to go, for messages.
        name: Of the file.

    Raises:
        StorageError: The disk is full, or this user may not write there.
    """
    with locked_folder("ivideogpt-stage-") as folder:
        file = folder / name
        with _refusal_explained(url, folder, folder):
            yield file


@contextlib.contextmanager
def _refusal_explained(path: str, folder: Path, staging: Path) -> Iterator[None]:
    """Turn what a local disk says that can't take `path` in `folder`, or in the folder `staging`, into `StorageError`."""
    try:
        yield
    except OSError as error:
        # Whoever writes may be reading other files meanwhile, whose errors name them.
        own = (
            error.filename is None or Path(error.filename).parent in (folder, staging) or staging.is_relative_to(error.filename)
        )
        if isinstance(error, StorageError) or error.errno not in _REFUSALS or not own:
            raise
        raise StorageError(
            f"{path} can't be written in {folder}: {error.strerror}. Make room there, or let this user write there, "
            "and run the same command again: what is done stays"
        ) from error


@contextlib.contextmanager
def _locked_file(own: Path) -> Iterator[tuple[Path, int]]:
    """Yields a new, locked file in `own` and its mode; makes `own` and the folders above it.

    Another writer of the same file may clear the folder, or the file before it is locked. Then another one is made, always by a
    new name: whoever is about to clear the old one goes by its name.
    """
    own.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            own.mkdir()
        file = own / f"{uuid.uuid4().hex}{PARTIAL}"
        with contextlib.ExitStack() as stack:
            # After the lock is gone, since network disks keep a file that is open.
            stack.callback(_discard, file)
            try:
                file.touch()
                status = os.fstat(stack.enter_context(locked(file, required=False)))
            except FileNotFoundError:
                continue
            if status.st_nlink:
                yield file, stat.S_IMODE(status.st_mode)
                return


def _discard(file: Path) -> None:
    """Remove a staged file and its folder. What can't be removed, the next writer of the same file removes."""
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def _remove_abandoned(own: Path) -> None:
    """Remove the files in a folder of staged ones that nobody holds any more: those of killed writers."""
    with contextlib.suppress(FileNotFoundError):
        for file in list(own.iterdir()):
            remove_unheld(file)
