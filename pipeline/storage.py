"""Paths and URLs: open, list, and publish a file so that it is either whole under its name or not there at all.

Every path may be a local path or a URL that fsspec opens. On a local disk publishing is a rename; on an object store it is a
single PUT of a file staged on local disk, or a multipart upload, which appears when it is complete. The price of staging is
local disk space for one file. Links are what they point to. Nothing is remembered about a store between two calls, since
other machines write to it meanwhile; the price is a request a call.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs

from pipeline.errors import StorageError
from pipeline.locked_folder import locked_folder
from pipeline.staging import PARTIAL, staged_for_upload, staged_on_disk

# Read ahead from a store: large enough to keep its latency small beside the transfer, small enough for many open files.
_BLOCK = 8 << 20
_LONGEST_MESSAGE = 500
# Whose exceptions come out of fsspec as they are.
_STORE_LIBRARIES = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs")


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
        found = _walk(fs, inner.rstrip("/"), nested) if is_local(folder) else _objects(fs, inner, nested)
    return {name: found[name] for name in sorted(found) if not name.endswith(PARTIAL)}


def _objects(fs: Any, inner: str, nested: bool) -> dict[str, dict[str, Any]]:
    """Relative name -> listing entry of the objects of a store in a folder."""
    if nested:
        start = len(inner.rstrip("/")) + 1
        found = {name[start:]: entry for name, entry in fs.find(inner, detail=True).items()}
    else:
        found = {basename(entry["name"]): entry for entry in fs.ls(inner, detail=True) if entry["type"] == "file"}
    # Stores may hold an empty object that stands for a folder; its name ends with a slash.
    return {name: entry for name, entry in found.items() if name and not entry["name"].endswith("/")}


def _walk(fs: Any, folder: str, nested: bool, above: tuple[Path, ...] = ()) -> dict[str, dict[str, Any]]:
    """Relative name -> listing entry of the files on a local disk, links followed unless they lead back to a folder above.

    Neither a link to nothing nor a device is a file.
    """
    here = Path(folder).resolve()
    if any(one.is_relative_to(here) for one in above):
        return {}
    found = {}
    for entry in fs.ls(folder, detail=True):
        name, kind = basename(entry["name"]), _kind(entry)
        if kind == "file":
            found[name] = entry
        elif nested and kind == "directory":
            below = _walk(fs, entry["name"], nested, (*above, here))
            found |= {f"{name}/{file}": entry for file, entry in below.items()}
    return found


def _kind(entry: dict[str, Any]) -> str:
    """`file`, `directory` or `other`: what is listed, or what a link on a local disk points to."""
    if not entry.get("islink"):
        return str(entry["type"])
    target = Path(entry["name"])
    return "directory" if target.is_dir() else "file" if target.is_file() else "other"


def list_folders(folder: str) -> list[str]:
    """The names (not paths) of the folders directly in `folder`, sorted; empty where the folder isn't there."""
    fs, inner = _filesystem(folder)
    with _explained(folder):
        if not fs.isdir(inner):
            return []
        names = {entry["name"].rstrip("/") for entry in fs.ls(inner, detail=True) if _kind(entry) == "directory"}
    return sorted(basename(name) for name in names - {inner.rstrip("/")} if not name.endswith(PARTIAL))


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
def staged(path: str) -> Iterator[Path]:
    """Yield a local file name to write to; when the block ends well, publish that file as `path`.

    If the block raises, or the process dies, nothing appears under `path`. See `pipeline.staging`.

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
    """Publish `data` as the file `path`, whole or not at all."""
    with staged(path) as staging:
        staging.write_bytes(data)


def remove(path: str) -> None:
    """Remove a file; no error where it isn't there."""
    fs, inner = _filesystem(path)
    with _explained(path), contextlib.suppress(FileNotFoundError):
        if fs.exists(inner):
            fs.rm_file(inner)


@contextlib.contextmanager
def local_file(path: str) -> Iterator[Path]:
    """A file as a local one while this context lasts: itself where it is local, else a copy.

    Raises:
        FileNotFoundError: It isn't there.
    """
    if is_local(path):
        yield local_path(path)
        return
    with locked_folder("ivideogpt-copy-") as folder:
        yield local_copy(path, folder)


def local_copy(path: str, folder: Path) -> Path:
    """A local file with the content of `path`: itself where local, else a whole copy kept in `folder`."""
    if is_local(path):
        return local_path(path)
    target = folder / basename(path)
    if not target.exists() or target.stat().st_size != size(path):
        with staged(str(target)) as staging, open_read(path) as source, staging.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    return target
