"""Describes file system errors on a user's path in one line: the path, the reason, and what to do.

An error on a file of the project or of Python, or an error without a path, is a bug and keeps its traceback. Libraries often
don't say where a write failed, some not even why: `explained_write_errors` adds the folder.
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

_ROOM = "Free some space and run the same command again: it resumes"
_PERMISSION = "Give this user permission, or choose another path"
_OTHER = "Choose another path"
_MOUNT = "Check the disk or the network mount, and run the same command again"
_DESCRIPTORS = "Raise the limit on open files (`ulimit -n`) and run the same command again"
# Error of a path -> what to do.
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "Raise the limit on file sizes (`ulimit -f`) and run the same command again",
    errno.EROFS: _OTHER + ", or mount it writable",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENOTDIR: _OTHER + ": a part of this one is a file, not a folder",
    errno.EISDIR: _OTHER + ": this one is a folder, not a file",
    errno.EEXIST: _OTHER + ", or remove the file or broken link that is there instead of a folder",
    errno.ENAMETOOLONG: "Choose a shorter path",
    errno.ELOOP: _OTHER + ": this one has links that form a loop",
    errno.EIO: _MOUNT,
    errno.ESTALE: _MOUNT,
    errno.ENODEV: _MOUNT,
    errno.ENOTCONN: _MOUNT,
    errno.ENOENT: "Check the path; if it existed before, restore it and run the same command again",
    errno.EMFILE: _DESCRIPTORS,
    errno.ENFILE: _DESCRIPTORS,
}
# Errors that say nothing useful without a path.
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
# Words of file system errors from writers in C++ and Rust: torch's zip writer and safetensors.
_WRITE_ERRORS = ("iostream error", "inline_container", "PytorchStreamWriter failed", "os error")
_FULL_BELOW_BYTES = 1 << 20
_PACKAGES = ("pipeline", "tokenize_offline", "training")


def explain_path_error(error: OSError, folder: str | Path | None = None) -> str | None:
    """Returns one line about an error on a user's path; None for any other error.

    Args:
        error: The raised error.
        folder: Folder of the work, for an error without a path.
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
    """Whether a path belongs to Python or to the project."""
    package = Path(__file__).resolve().parents[1]
    parts = (Path(sys.prefix), Path(sys.base_prefix) / "lib", *(package.with_name(name) for name in _PACKAGES))
    return any(Path(path).absolute().is_relative_to(part) for part in parts)


@contextlib.contextmanager
def explained_write_errors(folder: str | Path) -> Iterator[None]:
    """Adds the folder that a library writes to, the reason and a remedy to its file system errors.

    Raises:
        StorageError: The file system refused a write.
    """
    try:
        yield
    except OSError as error:
        message = None if isinstance(error, StorageError) else explain_path_error(error, folder)
        if message is None:
            raise
        raise StorageError(message) from error
    except Exception as error:
        # On a full disk torch raises a RuntimeError, safetensors its own exception.
        if not any(word in str(error) for word in _WRITE_ERRORS):
            raise
        raise StorageError(f"{folder} can't be written: {_why(error, Path(folder))}. {_ROOM}") from error


def _why(error: Exception, folder: Path) -> str:
    """Returns why a writer failed: the disk if it is full, else the writer's own words."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _FULL_BELOW_BYTES:
            return os.strerror(errno.ENOSPC)
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def require_writable(path: str) -> None:
    """Checks before the work that an output folder can be created and written. Does not check URLs.

    Creates nothing, so a command that fails later leaves nothing behind.

    Raises:
        StorageError: The folder can't be created or written; the message says what to do.
    """
    if not storage.is_local(path):
        return
    folder = storage.local_path(path)
    try:
        with tempfile.TemporaryFile(dir=_nearest_folder(folder)) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        message = explain_path_error(OSError(error.errno, error.strerror, str(folder)))
        if message is None:
            raise
        raise StorageError(f"--output {message}") from error


def _nearest_folder(path: Path) -> Path:
    """Returns the folder itself, or its nearest existing parent.

    Raises:
        OSError: The error that creating the folder would raise.
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
