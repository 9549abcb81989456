"""Recognises side files: files that operating systems and download tools leave next to data. All sources ignore them."""

import re
from collections import Counter
from collections.abc import Iterable

SIDE_FILES = "side files of operating systems and download tools (._x, .DS_Store, x.part and the like)"
# Lower-case names of folders and files. Hidden names (`.git`, `.cache`, `.ipynb_checkpoints`, AppleDouble's `._x`) count too.
_NAMES = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    }
)
# Endings of unfinished downloads, lock files and editor backups.
_ENDINGS = re.compile(
    r"(\.(part|partial|crdownload|download|aria2|tmp|temp|opdownload|filepart|incomplete|lock|lck|!ut|!qb|bak|swp|ytdl)|[_.]gstmp|~)$"
    r"|\.part-frag\d+$|\.tmp\.\w+$|\.f\d+\.\w+\.part$"
)
_SHOWN_ENDINGS = 20


def is_side_file(name: str) -> bool:
    """Whether a file, given by its path in the source, is a side file or lies in a folder of side files."""
    *folders, file = name.lower().split("/")
    parts = [*folders, file]
    return any(part.startswith(".") or part in _NAMES for part in parts) or _ENDINGS.search(file) is not None


def ending(name: str) -> str:
    """Return the ending of a file's name in lower case; empty if it has none."""
    stem, dot, last = name.rpartition("/")[2].rpartition(".")
    return dot + last.lower() if stem else ""


def count_by_ending(names: Iterable[str]) -> Counter[str]:
    """Return reason -> number of ignored files: side files together, and other files by ending."""
    counts: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    for name in names:
        if is_side_file(name):
            counts[SIDE_FILES] += 1
        else:
            endings[ending(name)] += 1
    for rank, (last, count) in enumerate(endings.most_common()):
        reason = f"files that end in {last}" if last else "files without an ending"
        counts[reason if rank < _SHOWN_ENDINGS else "files of further endings"] += count
    return counts
