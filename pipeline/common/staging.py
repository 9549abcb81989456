"""Stages files: writes them under a temporary name, next to a local file or in `TMPDIR` for an object store.

A staged file is locked while its writer lives, so files of killed writers can be told from those of living ones and removed. On
a local disk each final file has its own hidden folder, found without listing all names. Without file locks nothing is ever
removed.
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

# Ending of names that readers ignore.
PARTIAL = ".partial"
# Errors of a local disk that is full or not writable.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def staged_on_disk(final: Path) -> Iterator[Path]:
    """Yields a file name next to `final`; if the block succeeds, renames that file to `final`.

    If the block raises an error or the process dies, `final` is unchanged. The next successful writer removes what a killed
    writer of the same file left, but not the file of a living one; the last writer to finish wins.

    Raises:
        StorageError: The disk is full, or this user may not write there.
    """
    own = final.with_name(f".{final.name}{PARTIAL}")
    with _refusal_explained(str(final), final.parent, own), _locked_file(own) as (file, mode):
        yield file
        with file.open("rb") as written:
            os.fsync(written.fileno())
        # Some writers make files that only their owner can read; shards follow the umask.
        file.chmod(mode)
        file.replace(final)
        _remove_abandoned(own)


def remove_abandoned(folder: Path) -> None:
    """Removes what killed writers left in a folder on a local disk, but not the files of living writers.

    A writer removes leftovers of its own file only, and a file that is complete may get no other writer.
    """
    for own in folder.glob(f".*{PARTIAL}"):
        _remove_abandoned(own)
        with contextlib.suppress(OSError):
            own.rmdir()


@contextlib.contextmanager
def staged_for_upload(url: str, name: str) -> Iterator[Path]:
    """Yields a file name in a folder of `TMPDIR` that is removed when the block ends.

    Args:
        url: Target of the file, for messages.
        name: Name of the file.

    Raises:
        StorageError: The disk is full, or this user may not write there.
    """
    with locked_folder("ivideogpt-stage-") as folder:
        file = folder / name
        with _refusal_explained(url, folder, folder):
            yield file


@contextlib.contextmanager
def _refusal_explained(path: str, folder: Path, staging: Path) -> Iterator[None]:
    """Turns refusals of a local disk to write `path` in `folder`, or in the folder `staging`, into `StorageError`."""
    try:
        yield
    except OSError as error:
        # The block may also read other files; errors on these name them.
        own = (
            error.filename is None or Path(error.filename).parent in (folder, staging) or staging.is_relative_to(error.filename)
        )
        if isinstance(error, StorageError) or error.errno not in _REFUSALS or not own:
            raise
        raise StorageError(
            f"{path} can't be written in {folder}: {error.strerror}. Free some space or give this user permission, "
            "and run the same command again: it resumes"
        ) from error


@contextlib.contextmanager
def _locked_file(own: Path) -> Iterator[tuple[Path, int]]:
    """Yields a new, locked file in `own`, and its mode; makes `own` and the folders above it.

    Another writer of the same file may remove the folder, or the file before it is locked. Then this makes another file, always
    with a new name, because the other writer removes by name.
    """
    own.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            own.mkdir()
        file = own / f"{uuid.uuid4().hex}{PARTIAL}"
        with contextlib.ExitStack() as stack:
            # After the unlock, because network disks keep an open file.
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
    """Removes a staged file and its folder. The next writer of the same file removes what can't be removed now."""
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def _remove_abandoned(own: Path) -> None:
    """Removes the staged files of killed writers: those in the folder that no process locks."""
    with contextlib.suppress(FileNotFoundError):
        for file in list(own.iterdir()):
            remove_unheld(file)
