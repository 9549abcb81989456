"""Paths and URLs: open, list, and publish a file so that it is either whole under its name or not there at all.

Every path may be a local path or a URL that fsspec opens. On a local disk publishing is a rename out of a folder that every
file has to itself, so that what a killed writer left is found without looking at all names, of which there may be many; on an
object store it is a single PUT of a file staged on local disk, or a multipart upload, which appears when it is complete. The
price of staging is local disk space for one file. Nothing is remembered about a store from one call to the next, since other
machines write to it meanwhile; the price is a request a call.
"""

import contextlib
import errno
import fcntl
import functools
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs

from pipeline.errors import StorageError

_PARTIAL = ".partial"
_STAGE_PREFIX = "ivideogpt-stage-"
_STALE_SECONDS = 3600
# Read ahead from a store: large enough to keep its latency small beside the transfer, small enough for many open files.
_BLOCK = 8 << 20
_LONGEST_MESSAGE = 500
# What a local disk says that takes no more, or not from this user.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
# Whose exceptions come out of fsspec as they are.
_STORE_LIBRARIES = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


_UMASK = _umask()


def is_local(path: str) -> bool:
    """Whether `path` lies on a mounted file system (not on an object store or in memory)."""
    return "://" not in path or path.startswith("file://")


def local_path(path: str) -> Path:
    """The local `Path` behind a local path or `file://` URL."""
    return Path(path.removeprefix("file://"))


def join(base: str, *parts: str) -> str:
    """`base/part/part`, for paths and URLs alike."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def basename(path: str) -> str:
    """The last component of a path or URL."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def _filesystem(path: str) -> tuple[Any, str]:
    """The file system of a path, which remembers no listings, and the path within it."""
    try:
        return url_to_fs(path, use_listings_cache=False)
    except ImportError as error:
        raise StorageError(f"{path} can't be opened: {error}. pip install 'ivideogpt-pipeline[stores]'") from error
    except ValueError as error:
        raise StorageError(f"{path} can't be opened: {error}") from error


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn what a store raises into `StorageError`; a missing file stays `FileNotFoundError`, a local disk's errors its own."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except Exception as error:
        if is_local(path) or not (isinstance(error, OSError) or _of_store(error)):
            raise
        raise _store_error(path, error) from error


def _of_store(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in _STORE_LIBRARIES


def _store_error(path: str, error: Exception) -> StorageError:
    what = f"{type(error).__name__}: {str(error)[:_LONGEST_MESSAGE]}"
    return StorageError(f"{path}: {what}. Check the URL, the credentials and the endpoint, and run the command again")


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    fs, inner = _filesystem(path)
    with _explained(path):
        return bool(fs.exists(inner))


def size(path: str) -> int:
    """Bytes of a file."""
    fs, inner = _filesystem(path)
    with _explained(path):
        return int(fs.size(inner))


def list_files(folder: str) -> list[str]:
    """The names (not paths) of the files directly in `folder`, sorted; empty where the folder isn't there.

    Files being staged are left out.
    """
    return list(file_sizes(folder))


def file_sizes(folder: str, nested: bool = False) -> dict[str, int]:
    """Name -> bytes of the files directly in `folder`, in the order of names; empty where the folder isn't there.

    Args:
        folder: A local path or URL.
        nested: Files in folders below it too, named by their path relative to `folder`.
    """
    return {name: int(entry["size"]) for name, entry in _files(folder, nested).items()}


def content_tags(folder: str) -> dict[str, str]:
    """Name -> what a store says of the content of the files in `folder` and below it: equal content, equal tag.

    The reverse does not hold: S3's entity tag depends on how a file was uploaded too. A local disk says nothing.
    """
    if is_local(folder):
        return {}
    tags = {}
    for name, entry in _files(folder, nested=True).items():
        kind = next((kind for kind in ("md5Hash", "ETag") if entry.get(kind)), None)
        if kind is not None:
            tags[name] = f"{kind}:{str(entry[kind]).strip(chr(34))}"
    return tags


def _files(folder: str, nested: bool) -> dict[str, dict[str, Any]]:
    """Relative name -> what the file system says of the file, in the order of names."""
    fs, inner = _filesystem(folder)
    with _explained(folder):
        if not fs.isdir(inner):
            return {}
        if nested:
            start = len(inner.rstrip("/")) + 1
            found = {name[start:]: entry for name, entry in fs.find(inner, detail=True).items()}
        else:
            found = {basename(entry["name"]): entry for entry in fs.ls(inner, detail=True) if entry["type"] == "file"}
    # Stores may hold an empty object that stands for a folder; its name ends with a slash.
    kept = {name: entry for name, entry in found.items() if name and not entry["name"].endswith("/")}
    return {name: kept[name] for name in sorted(kept) if not name.endswith(_PARTIAL)}


def list_folders(folder: str) -> list[str]:
    """The names (not paths) of the folders directly in `folder`, sorted; empty where the folder isn't there."""
    fs, inner = _filesystem(folder)
    with _explained(folder):
        if not fs.isdir(inner):
            return []
        names = {entry["name"].rstrip("/") for entry in fs.ls(inner, detail=True) if entry["type"] == "directory"}
    return sorted(basename(name) for name in names - {inner.rstrip("/")} if not name.endswith(_PARTIAL))


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """Open a file for reading, seekable, in binary."""
    fs, inner = _filesystem(path)
    with _explained(path):
        file = fs.open(inner, "rb", block_size=_BLOCK, cache_type="readahead")
    with file:
        try:
            yield file
        except Exception as error:
            # A store may fail in the middle of a file; errors of whoever reads are their own.
            if not _of_store(error):
                raise
            raise _store_error(path, error) from error


def read_bytes(path: str) -> bytes:
    """The whole of a (small) file."""
    fs, inner = _filesystem(path)
    with _explained(path):
        return bytes(fs.cat_file(inner))


def read_range(path: str, start: int, end: int) -> bytes:
    """The bytes `start` to `end` of a file that has so many, without those around them."""
    fs, inner = _filesystem(path)
    with _explained(path):
        return bytes(fs.cat_file(inner, start=start, end=end)) if end > start else b""


@contextlib.contextmanager
def _refusal_explained(path: str, folder: Path, staging: Path) -> Iterator[None]:
    """Turn what a local disk says that can't take `path` in `folder`, or there as `staging`, into `StorageError`."""
    try:
        yield
    except OSError as error:
        # Whoever writes may be reading other files meanwhile, whose errors name them.
        own = error.filename is None or staging.is_relative_to(error.filename) or Path(error.filename).parent == folder
        if isinstance(error, StorageError) or error.errno not in _REFUSALS or not own:
            raise
        raise StorageError(
            f"{path} can't be written in {folder}: {error.strerror}. Make room there, or let this user write there, "
            "and run the same command again: what is done stays"
        ) from error


@contextlib.contextmanager
def _staging_folder() -> Iterator[Path]:
    """A folder for one file in `TMPDIR`, locked as long as this process lives; see `_clear_stale`."""
    _clear_stale(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=_STAGE_PREFIX) as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            # Where a file system knows no locks, nothing is ever cleared.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(folder)
        finally:
            os.close(descriptor)


@functools.cache
def _clear_stale(parent: str) -> None:
    """Remove, once a process, the staging folders that nobody holds any more: those of killed writers."""
    for folder in Path(parent).glob(f"{_STAGE_PREFIX}*"):
        with contextlib.suppress(OSError):
            # A new one is not locked from its first moment.
            if time.time() - folder.stat().st_mtime < _STALE_SECONDS:
                continue
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def staged(path: str) -> Iterator[Path]:
    """Yield a local file name to write to; when the block ends well, publish that file as `path`.

    If the block raises, or the process dies, nothing appears under `path`. What a killed writer of the same `path` left
    staged is removed by the next one that publishes it; what a living one is writing stays, and the last one to end wins.
    """
    if not is_local(path):
        fs, inner = _filesystem(path)
        with _staging_folder() as folder:
            staging = folder / basename(path)
            with _refusal_explained(path, folder, staging):
                yield staging
            with _explained(path):
                fs.put_file(str(staging), inner)
        return
    final = local_path(path)
    own = final.with_name(f".{final.name}{_PARTIAL}")
    # As it will be called; the folder and the right to write in it may be missing yet.
    staging, descriptor = own / f"{uuid.uuid4().hex[:8]}{_PARTIAL}", -1
    try:
        with _refusal_explained(path, final.parent, staging):
            descriptor = _create_locked(staging)
            yield staging
            with staging.open("rb") as file:
                os.fsync(file.fileno())
            # Some writers make files that only their owner reads; shards are for everyone whom the umask lets in.
            staging.chmod(0o666 & ~_UMASK)
            staging.replace(final)
        _remove_abandoned(own)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        # What can't be removed either, the next one that publishes `path` removes.
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
            own.rmdir()


def _create_locked(staging: Path) -> int:
    """Create an empty file and the folders above it; a descriptor that holds a lock on it, so that nobody clears it.

    Another writer of the same path may clear the folder, or the file before it is locked; then they are made again.
    """
    staging.parent.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            staging.parent.mkdir()
        try:
            # Network file systems lock only what is open for writing.
            descriptor = os.open(staging, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        # Where a file system knows no locks, nothing is ever cleared.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _remove_abandoned(own: Path) -> None:
    """Remove the files in a folder of staged ones that nobody holds any more: those of killed writers."""
    with contextlib.suppress(FileNotFoundError):
        for file in list(own.iterdir()):
            with contextlib.suppress(OSError):
                descriptor = os.open(file, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()
                finally:
                    os.close(descriptor)


def write_bytes(path: str, data: bytes) -> None:
    """Publish `data` as the file `path`, whole or not at all."""
    with staged(path) as staging:
        staging.write_bytes(data)


def remove(path: str) -> None:
    """Remove a file; no error where it isn't there."""
    fs, inner = _filesystem(path)
    with _explained(path), contextlib.suppress(FileNotFoundError):
        if fs.exists(inner):
            fs.rm_file(inner)


def local_copy(path: str, folder: Path) -> Path:
    """A local file with the content of `path`: itself where local, else a whole copy kept in `folder`."""
    if is_local(path):
        return local_path(path)
    target = folder / basename(path)
    if not target.exists() or target.stat().st_size != size(path):
        with staged(str(target)) as staging, open_read(path) as source, staging.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    return target
