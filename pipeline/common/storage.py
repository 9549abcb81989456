"""Paths and URLs: open, list and publish files, so that a file is either whole under its name or absent.

Every path is a local path or a URL that fsspec opens. Publishing is a rename on a local disk. On an object store it uploads a
file staged on local disk, by a single PUT or a multipart upload that appears when it is complete, which needs local space for
one file. Follows links. Caches nothing about a store between calls, because other machines write to it; the price is a request
a call.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.common.errors import StorageError
from pipeline.common.listings import ListedFile, folders_on_disk, is_time_tag, listed_in_store, listed_on_disk
from pipeline.common.staging import PARTIAL, remove_abandoned, staged_for_upload, staged_on_disk
from pipeline.common.temp_dirs import locked_folder

# Read-ahead in bytes: large enough to hide a store's latency, small enough for many open files.
_BLOCK = 8 << 20
_LONGEST_MESSAGE = 500
# Protocols of files within another file, whose URL follows `::`.
_CHAINED = ("zip", "tar", "libarchive", "reference")
# Libraries whose exceptions fsspec passes on unchanged.
_STORE_LIBRARIES = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")


def is_local(path: str) -> bool:
    """Whether `path` is on a mounted file system, not on an object store or in memory."""
    return "://" not in path or path.startswith("file://")


def local_path(path: str) -> Path:
    """Returns the `Path` of a local path or `file://` URL."""
    return Path(path.removeprefix("file://"))


def join(base: str, *parts: str) -> str:
    """Returns `base/part/part` for paths and URLs. A part may begin with a slash, as names of objects may."""
    return "/".join([base.rstrip("/"), *(part.rstrip("/") for part in parts)])


def basename(path: str) -> str:
    """Returns the last component of a path or URL."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def _filesystem(path: str) -> tuple[AbstractFileSystem, str]:
    """Returns the file system of a path, without a cache of listings, and the path within it.

    A path may end in a listed name. fsspec would take `::` in that name for the border of two URLs, and text before `://` in a
    local name for a protocol, so it gets the whole path only if the path begins with a chain of URLs.
    """
    protocol, separator, rest = path.partition("://")
    try:
        if is_local(path):
            fs = LocalFileSystem()
            return fs, fs._strip_protocol(path)
        if "::" not in rest or "::" in protocol or protocol in _CHAINED:
            return url_to_fs(path, use_listings_cache=False)
        fs, inner = url_to_fs(f"{protocol}{separator}{rest.partition('::')[0]}", use_listings_cache=False)
        return fs, f"{inner}::{rest.partition('::')[2]}"
    except ImportError as error:
        raise StorageError(f"{path} can't be opened: {error}. pip install 'ivideogpt-pipeline[stores]'") from error
    except ValueError as error:
        raise StorageError(f"{path} can't be opened: {error}") from error


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns errors of a store into `StorageError`; keeps `FileNotFoundError` and errors of a local disk."""
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
    """Whether a file or folder exists."""
    fs, inner = _filesystem(path)
    with _explained(path):
        return bool(fs.exists(inner))


def size(path: str) -> int:
    """Returns the size of a file in bytes."""
    fs, inner = _filesystem(path)
    with _explained(path):
        return int(fs.size(inner))


def list_files(folder: str) -> list[str]:
    """Returns the names (not paths) of the files directly in `folder`, sorted, without staged ones; empty if it is missing."""
    return list(listing(folder))


def file_sizes(folder: str, nested: bool = False) -> dict[str, int]:
    """Returns name -> bytes of the files in `folder`; see `listing`."""
    return {name: known.size for name, known in listing(folder, nested).items()}


def content_tags(folder: str) -> dict[str, str]:
    """Returns name -> the store's digest of each file in `folder` and below: equal digests mean equal content.

    Equal content may have different digests: S3's entity tag also depends on the upload. A local disk has no digests.
    """
    files = listing(folder, nested=True)
    return {name: file.tag for name, file in files.items() if file.tag is not None and not is_time_tag(file.tag)}


def listing(folder: str, nested: bool = False) -> dict[str, ListedFile]:
    """Returns name -> facts of the files directly in `folder`, sorted by name; empty if the folder is missing.

    Args:
        folder: A local path or URL.
        nested: Includes files in folders below, named by their path relative to `folder`.
    """
    if is_local(folder):
        files = listed_on_disk(str(local_path(folder).expanduser()), nested)
    else:
        fs, inner = _filesystem(folder)
        with _explained(folder):
            files = listed_in_store(fs, inner, nested) if fs.isdir(inner) else {}
    return {name: files[name] for name in sorted(files) if not name.endswith(PARTIAL)}


def remove_leftovers(folder: str) -> None:
    """Removes what killed writers left directly in a local folder; see `staging.remove_abandoned`. A store keeps none."""
    if is_local(folder):
        remove_abandoned(local_path(folder).expanduser())


def list_folders(folder: str) -> list[str]:
    """Returns the names (not paths) of the folders directly in `folder`, sorted; empty if the folder is missing."""
    if is_local(folder):
        names = folders_on_disk(str(local_path(folder).expanduser()))
    else:
        fs, inner = _filesystem(folder)
        with _explained(folder):
            entries = fs.ls(inner, detail=True) if fs.isdir(inner) else []
        paths = {entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"}
        names = {basename(path) for path in paths - {inner.rstrip("/")}}
    return sorted(name for name in names if not name.endswith(PARTIAL))


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """Opens a file for reading in binary; it is seekable."""
    fs, inner = _filesystem(path)
    with _explained(path):
        file = fs.open(inner, "rb", block_size=_BLOCK, cache_type="readahead")
    with file:
        try:
            yield file
        except Exception as error:
            # Translate a store's failure in the middle of a file, but not the block's own errors.
            if not _of_store(error):
                raise
            raise _store_error(path, error) from error


def read_bytes(path: str) -> bytes:
    """Returns all bytes of a (small) file."""
    fs, inner = _filesystem(path)
    with _explained(path):
        return bytes(fs.cat_file(inner))


def read_range(path: str, start: int, end: int) -> bytes:
    """Returns the bytes `start` to `end` of a file that has at least `end` bytes, without reading others."""
    fs, inner = _filesystem(path)
    with _explained(path):
        return bytes(fs.cat_file(inner, start=start, end=end)) if end > start else b""


@contextlib.contextmanager
def staged(path: str) -> Iterator[Path]:
    """Yields a local file name to write to; if the block succeeds, publishes that file as `path`.

    If the block raises an error or the process dies, nothing appears at `path`. See `pipeline.common.staging`.

    Raises:
        StorageError: The disk is full, or `path` can't be written.
    """
    if is_local(path):
        with staged_on_disk(local_path(path)) as file:
            yield file
        return
    fs, inner = _filesystem(path)
    with staged_for_upload(path, basename(path)) as file:
        yield file
        with _explained(path):
            fs.put_file(str(file), inner)


def write_bytes(path: str, data: bytes) -> None:
    """Publishes `data` as the file `path`, whole or not at all."""
    with staged(path) as staging:
        staging.write_bytes(data)


def remove(path: str) -> None:
    """Removes a file; no error if it does not exist."""
    fs, inner = _filesystem(path)
    with _explained(path), contextlib.suppress(FileNotFoundError):
        if fs.exists(inner):
            fs.rm_file(inner)


@contextlib.contextmanager
def local_file(path: str) -> Iterator[Path]:
    """Yields a local file with the content of `path`, for the time of the block: the file itself, or a copy of a remote one.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    if is_local(path):
        yield local_path(path)
        return
    with locked_folder("ivideogpt-copy-") as folder:
        yield local_copy(path, folder)


def local_copy(path: str, folder: Path) -> Path:
    """Returns a local file with the content of `path`: the file itself, or a copy of a remote one, kept in `folder`."""
    if is_local(path):
        return local_path(path)
    target = folder / basename(path)
    if not target.exists() or target.stat().st_size != size(path):
        with staged(str(target)) as staging, open_read(path) as source, staging.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    return target
