"""What lies in a folder: names, sizes, and what tells cheaply whether a file is still what it was.

A folder may hold a million files. On a local disk its entries are taken one by one, in a few bytes each; an object store's
client keeps all that the store says until the listing is complete. What goes away while it is listed is not there.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# What stores call a digest of the content, and what they call the time of the last change.
_DIGESTS = ("md5Hash", "ETag")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_TIME = "time"
# A link to nothing or to itself, or a file that went away.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class ListedFile(NamedTuple):
    """What a listing says of a file.

    Attributes:
        size: In bytes.
        tag: With its kind in front: a digest of the content, where a store gives one, else when the file was changed last;
            None where nothing is said.
    """

    size: int
    tag: str | None = None


def is_time_tag(tag: str) -> bool:
    """Whether a tag is a time and no digest of the content: a copy of the file has another."""
    return tag.startswith(f"{_TIME}:")


def listed_on_disk(folder: str, nested: bool, above: tuple[Path, ...] = ()) -> dict[str, ListedFile]:
    """Relative name -> what is known of the files in a local folder, links followed unless they lead back to a folder above.

    Neither a link to nothing nor a device is a file. A file's tag holds the time of the last change of its content and that of
    its entry, which nobody can set back.
    """
    here = Path(folder).resolve()
    if any(one.is_relative_to(here) for one in above):
        return {}
    found = {}
    below = []
    for entry, status in _entries(folder):
        if stat.S_ISREG(status.st_mode):
            found[entry.name] = ListedFile(status.st_size, f"{_TIME}:{status.st_mtime_ns:x}-{status.st_ctime_ns:x}")
        elif stat.S_ISDIR(status.st_mode):
            below.append(entry.name)
    for name in below if nested else ():
        files = listed_on_disk(f"{folder}/{name}", nested, (*above, here))
        found.update((f"{name}/{file}", known) for file, known in files.items())
    return found


def folders_on_disk(folder: str) -> set[str]:
    """Names of the folders directly in a local folder, and of links to such."""
    return {entry.name for entry, status in _entries(folder) if stat.S_ISDIR(status.st_mode)}


def _entries(folder: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """The entries of a local folder with what they, or what they point to, are; none where it is no folder."""
    try:
        opened = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with opened as entries:
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in _NOTHING_THERE:
                    raise
                continue
            yield entry, status


def listed_in_store(fs: Any, inner: str, nested: bool) -> dict[str, ListedFile]:
    """Relative name -> what is known of the objects of a store in a folder.

    Args:
        fs: File system of fsspec.
        inner: Path of the folder in it.
        nested: Those further below too.
    """
    start = len(inner.rstrip("/")) + 1
    # Stores may hold an empty object that stands for a folder; its name ends with a slash.
    if nested:
        found = fs.find(inner, detail=True).items()
        return {name[start:]: _listed(entry) for name, entry in found if name[start:] and not entry["name"].endswith("/")}
    entries = ((entry["name"], entry) for entry in fs.ls(inner, detail=True) if entry["type"] == "file")
    return {name.rsplit("/", 1)[-1]: _listed(entry) for name, entry in entries if not name.endswith("/")}


def _listed(entry: dict[str, Any]) -> ListedFile:
    digest = next((f"{kind}:{str(entry[kind]).strip(chr(34))}" for kind in _DIGESTS if entry.get(kind)), None)
    time = next((f"{_TIME}:{entry[kind]}" for kind in _TIMES if entry.get(kind)), None)
    return ListedFile(int(entry["size"]), digest or time)
