"""What operating systems and download tools leave beside data: one rule, by which every listing of a source passes it over."""

import re
from collections import Counter
from collections.abc import Iterable

SIDE_FILES = "side files of operating systems and download tools (._x, .DS_Store, x.part and the like)"
# Folders and files, in small letters. Hidden names (`.git`, `.cache`, `.ipynb_checkpoints`, AppleDouble's `._x`) need no list.
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
# Of downloads that aren't finished, locks and copies of editors.
_ENDINGS = re.compile(
    r"(\.(part|partial|crdownload|download|aria2|tmp|temp|opdownload|filepart|incomplete|lock|lck|!ut|!qb|bak|swp|ytdl)|[_.]gstmp|~)$"
    r"|\.part-frag\d+$|\.tmp\.\w+$|\.f\d+\.\w+\.part$"
)
_SHOWN_ENDINGS = 20


def is_side_file(name: str) -> bool:
    """Whether a file, named by its path in the source, is none of the data; the folders above it count too."""
    *folders, file = name.lower().split("/")
    parts = [*folders, file]
    return any(part.startswith(".") or part in _NAMES for part in parts) or _ENDINGS.search(file) is not None


def ending(name: str) -> str:
    """The ending of a file's name, in small letters; empty where it has none."""
    stem, dot, last = name.rpartition("/")[2].rpartition(".")
    return dot + last.lower() if stem else ""


def count_by_ending(names: Iterable[str]) -> Counter[str]:
    """Reason -> how many of the files that a source has and doesn't take: side files, and the others by their endings."""
    counts: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    for name in names:
        if is_side_file(name):
            counts[SIDE_FILES] += 1
        else:
            endings[ending(name)] += 1
    for place, (one, count) in enumerate(endings.most_common()):
        known = f"files that end in {one}" if one else "files without an ending"
        counts[known if place < _SHOWN_ENDINGS else "files of further endings"] += count
    return counts
