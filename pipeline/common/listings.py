"""Lists folders: names, sizes, and a cheap tag that changes when a file changes.

A folder may hold a million files. A local listing keeps a few bytes per entry; an object store's client keeps everything until
the listing is complete. Files that disappear during the listing are left out.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

# The stores' keys for a digest of the content and for the time of the last change.
_DIGESTS = ("md5Hash", "ETag")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_TIME = "time"
# A broken link, a link to itself, or a deleted file.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class ListedFile(NamedTuple):
    """What a listing says about a file.

    Attributes:
        size: Size in bytes.
        tag: `KIND:VALUE`: a digest of the content if the store has one, else the time of the last change; None if unknown.
    """

    size: int
    tag: str | None = None


def is_time_tag(tag: str) -> bool:
    """Whether a tag is a time, not a digest of the content. A copy of a file gets another time."""
    return tag.startswith(f"{_TIME}:")


def listed_on_disk(folder: str, nested: bool, above: tuple[Path, ...] = ()) -> dict[str, ListedFile]:
    """Returns relative name -> facts of the files in a local folder.

    Follows links, unless they lead back to a folder above. Skips broken links and devices. A file's tag holds its mtime and
    ctime; users can't set ctime back.
    """
    resolved = Path(folder).resolve()
    if any(folder_above.is_relative_to(resolved) for folder_above in above):
        return {}
    listed = {}
    subfolders = []
    for entry, status in _entries(folder):
        if stat.S_ISREG(status.st_mode):
            listed[entry.name] = ListedFile(status.st_size, f"{_TIME}:{status.st_mtime_ns:x}-{status.st_ctime_ns:x}")
        elif stat.S_ISDIR(status.st_mode):
            subfolders.append(entry.name)
    for name in subfolders if nested else ():
        files = listed_on_disk(f"{folder}/{name}", nested, (*above, resolved))
        listed.update((f"{name}/{file}", known) for file, known in files.items())
    return listed


def folders_on_disk(folder: str) -> set[str]:
    """Returns the names of the folders directly in a local folder, and of links to folders."""
    return {entry.name for entry, status in _entries(folder) if stat.S_ISDIR(status.st_mode)}


def _entries(folder: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Yields the entries of a local folder and the status of what they point to; nothing if it is not a folder."""
    try:
        opened = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with opened as entries:
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                continue
            yield entry, status


def listed_in_store(fs: AbstractFileSystem, inner: str, nested: bool) -> dict[str, ListedFile]:
    """Returns relative name -> facts of the objects in a folder of a store.

    Args:
        fs: File system of fsspec.
        inner: Path of the folder in it.
        nested: Includes objects in folders below.
    """
    start = len(inner.rstrip("/")) + 1
    # An empty object whose name ends with a slash stands for a folder.
    if nested:
        objects = fs.find(inner, detail=True).items()
        return {name[start:]: _listed(entry) for name, entry in objects if name[start:] and not entry["name"].endswith("/")}
    entries = ((entry["name"], entry) for entry in fs.ls(inner, detail=True) if entry["type"] == "file")
    return {name.rsplit("/", 1)[-1]: _listed(entry) for name, entry in entries if not name.endswith("/")}


def _listed(entry: dict[str, Any]) -> ListedFile:
    digest = next((f"{kind}:{str(entry[kind]).strip(chr(34))}" for kind in _DIGESTS if entry.get(kind)), None)
    time = next((f"{_TIME}:{entry[kind]}" for kind in _TIMES if entry.get(kind)), None)
    return ListedFile(int(entry["size"]), digest or time)
