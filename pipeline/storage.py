"""Paths and URLs: open, list, and publish a file so that it is either whole under its name or not there at all.

Every path may be a local path or a URL that fsspec opens. On a local disk publishing is a rename within the folder; on an
object store it is a single PUT of a file staged on local disk. The price of staging is local disk space for one file.
"""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import fsspec
from fsspec.core import url_to_fs

_PARTIAL = ".partial"


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


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    fs, inner = url_to_fs(path)
    return bool(fs.exists(inner))


def size(path: str) -> int:
    """Bytes of a file."""
    fs, inner = url_to_fs(path)
    return int(fs.size(inner))


def list_files(folder: str) -> list[str]:
    """The names (not paths) of the files directly in `folder`, sorted; empty where the folder isn't there.

    Files being staged are left out.
    """
    fs, inner = url_to_fs(folder)
    if not fs.isdir(inner):
        return []
    entries = fs.ls(inner, detail=True)
    names = (basename(entry["name"]) for entry in entries if entry["type"] == "file")
    return sorted(name for name in names if not name.endswith(_PARTIAL))


def file_sizes(folder: str, nested: bool = False) -> dict[str, int]:
    """Name -> bytes of the files directly in `folder`, in the order of names; empty where the folder isn't there.

    Args:
        folder: A local path or URL.
        nested: Files in folders below it too, named by their path relative to `folder`.
    """
    fs, inner = url_to_fs(folder)
    if not fs.isdir(inner):
        return {}
    if nested:
        start = len(inner.rstrip("/")) + 1
        found = {name[start:]: int(entry["size"]) for name, entry in fs.find(inner, detail=True).items()}
        return {name: found[name] for name in sorted(found) if not name.endswith(_PARTIAL)}
    entries = {basename(entry["name"]): entry for entry in fs.ls(inner, detail=True) if entry["type"] == "file"}
    return {name: int(entries[name]["size"]) for name in sorted(entries) if not name.endswith(_PARTIAL)}


def list_folders(folder: str) -> list[str]:
    """The names (not paths) of the folders directly in `folder`, sorted; empty where the folder isn't there."""
    fs, inner = url_to_fs(folder)
    if not fs.isdir(inner):
        return []
    return sorted(basename(entry["name"]) for entry in fs.ls(inner, detail=True) if entry["type"] == "directory")


@contextlib.contextmanager
def open_read(path: str) -> Iterator[IO[bytes]]:
    """Open a file for reading, seekable, in binary."""
    with fsspec.open(path, "rb") as file:
        yield file


def read_bytes(path: str) -> bytes:
    """The whole of a (small) file."""
    with open_read(path) as file:
        return bytes(file.read())


@contextlib.contextmanager
def staged(path: str) -> Iterator[Path]:
    """Yield a local file name to write to; when the block ends well, publish that file as `path`.

    If the block raises, or the process dies, nothing appears under `path`. What a killed writer of the same `path` left
    staged is removed by the next one that publishes it.
    """
    if not is_local(path):
        fs, inner = url_to_fs(path)
        with tempfile.TemporaryDirectory(prefix="ivideogpt-stage-") as folder:
            staging = Path(folder) / basename(path)
            yield staging
            fs.put_file(str(staging), inner)
        return
    final = local_path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        yield staging
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        # Some writers make files that only their owner reads; shards are for everyone whom the umask lets in.
        staging.chmod(0o666 & ~_UMASK)
        staging.replace(final)
    finally:
        staging.unlink(missing_ok=True)
    for leftover in final.parent.glob(f".{final.name}.*{_PARTIAL}"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: str, data: bytes) -> None:
    """Publish `data` as the file `path`, whole or not at all."""
    with staged(path) as staging:
        staging.write_bytes(data)


def remove(path: str) -> None:
    """Remove a file; no error where it isn't there."""
    fs, inner = url_to_fs(path)
    if fs.exists(inner):
        fs.rm_file(inner)


def local_copy(path: str, folder: Path) -> Path:
    """A local file with the content of `path`: itself where local, else a whole copy kept in `folder`."""
    if is_local(path):
        return local_path(path)
    fs, inner = url_to_fs(path)
    target = folder / basename(path)
    if not target.exists() or target.stat().st_size != fs.size(inner):
        with staged(str(target)) as staging, fsspec.open(path, "rb") as source, staging.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    return target
