"""What a file system says about a user's path, as one line: the path, the reason, and what to do.

Only errors about paths of users are told so. One of the project's or of Python's own files, or one that names nothing, is a bug
and keeps its traceback. Libraries that write files by themselves often don't say where, some not even why: `writing` names the
folder for them.
"""

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.common import storage
from pipeline.common.errors import StorageError

_ROOM = "Make room there, and run the same command again: what is done stays"
_PERMISSION = "Let this user have it, or choose another path"
_OTHER = "Choose another path"
_MOUNT = "Look after the disk or the network mount, and run the same command again"
_DESCRIPTORS = "Raise the limit on open files (`ulimit -n`), and run the same command again"
# What to do about each error of a path.
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "Raise the limit on the size of files there (`ulimit -f`), and run the same command again",
    errno.EROFS: _OTHER + ", or mount it so that it can be written",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENOTDIR: _OTHER + ": a part of it is a file, where a folder should be",
    errno.EISDIR: _OTHER + ": it is a folder, where a file should be",
    errno.EEXIST: _OTHER + ", or remove what is there: a file, or a link to nothing, where a folder should be",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.ELOOP: _OTHER + ": its links lead in a circle",
    errno.EIO: _MOUNT,
    errno.ESTALE: _MOUNT,
    errno.ENODEV: _MOUNT,
    errno.ENOTCONN: _MOUNT,
    errno.ENOENT: "Check the path; if it was there before, restore it and run the same command again",
    errno.EMFILE: _DESCRIPTORS,
    errno.ENFILE: _DESCRIPTORS,
}
# Without a path these say nothing, or nothing about a path.
_NEED_A_PATH = (
    errno.ENOENT,
    errno.EEXIST,
    errno.EPERM,
    errno.EACCES,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENODEV,
    errno.ENOTCONN,
)
# What writers in C++ and Rust say of an error of the file system: torch's of zip files, and safetensors'.
_WRITERS_WORDS = ("iostream error", "inline_container", "PytorchStreamWriter failed", "os error")
_LITTLE = 1 << 20
_PACKAGES = ("pipeline", "tokenize_offline", "training")


def explain_path_error(error: OSError, folder: str | Path | None = None) -> str | None:
    """One line on an error of a user's path; None where it is something else.

    Args:
        error: As it was raised.
        folder: Where work was done, for an error that names no path.
    """
    remedy = _REMEDIES.get(error.errno or 0)
    named = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else None
    if remedy is None or (named is None and (folder is None or error.errno in _NEED_A_PATH)):
        return None
    path = os.fsdecode(named) if named is not None else str(folder)
    if error.errno == errno.ENOENT and _is_own(path):
        return None
    return f"{path}: {os.strerror(error.errno or 0)}. {remedy}"


def _is_own(path: str) -> bool:
    """Whether a path is Python's or the project's own."""
    package = Path(__file__).resolve().parents[1]
    parts = (Path(sys.prefix), Path(sys.base_prefix) / "lib", *(package.with_name(name) for name in _PACKAGES))
    return any(Path(path).absolute().is_relative_to(part) for part in parts)


@contextlib.contextmanager
def explained_write_errors(folder: str | Path) -> Iterator[None]:
    """Name the folder that a library writes to in an error of the file system that it doesn't explain.

    Raises:
        StorageError: The file system refused; the message says where, why and what to do.
    """
    try:
        yield
    except OSError as error:
        told = None if isinstance(error, StorageError) else explain_path_error(error, folder)
        if told is None:
            raise
        raise StorageError(told) from error
    except Exception as error:
        # torch raises a RuntimeError where a disk is full, safetensors an exception of its own.
        if not any(word in str(error) for word in _WRITERS_WORDS):
            raise
        raise StorageError(f"{folder} can't be written: {_why(error, Path(folder))}. {_ROOM}") from error


def _why(error: Exception, folder: Path) -> str:
    """Why a writer failed that says little: the disk, if it is full, else its own words."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _LITTLE:
            return os.strerror(errno.ENOSPC)
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def require_writable(path: str) -> None:
    """Find out before the work whether an output folder can be made and written. URLs are taken at their word.

    Nothing is made: what is refused for another reason leaves nothing behind.

    Raises:
        StorageError: It can't; the message says what to do.
    """
    if not storage.is_local(path):
        return
    folder = storage.local_path(path)
    try:
        with tempfile.TemporaryFile(dir=_nearest_folder(folder)) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        told = explain_path_error(OSError(error.errno, error.strerror, str(folder)))
        if told is None:
            raise
        raise StorageError(f"--output {told}") from error


def _nearest_folder(path: Path) -> Path:
    """The folder itself, or the one in which the first of its missing parents would be made.

    Raises:
        OSError: As making the folder would.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        return _nearest_folder(path.parent)
    if not stat.S_ISDIR(mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return path
