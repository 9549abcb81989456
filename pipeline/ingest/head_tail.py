"""The ends of source files: what is read of a file to tell whether it is still the one that became a shard.

A hash of the first and the last 64 KiB: reading all of every file would cost as much as the work. A change in the middle that
leaves the size is not seen. Of a million files even the ends are much, so of sources of many files they are read when a
unit is made, and again only where a listing can't vouch for the file.
"""

import functools
import hashlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from pipeline.common import storage

_BYTES = 1 << 16
_THREADS, _REMOTE_THREADS = 16, 64  # a store answers late, but many at once


def head_tail_hash(path: str, size: int) -> str | None:
    """First 16 hex digits of the SHA-256 of the first and the last 64 KiB of a file of `size` bytes; None where it is gone."""
    try:
        digest = hashlib.sha256(storage.read_range(path, 0, min(size, _BYTES)))
        digest.update(storage.read_range(path, max(0, size - _BYTES), size))
    except FileNotFoundError:
        return None
    return digest.hexdigest()[:16]


def head_tail_hashes(folder: str, sizes: Mapping[str, int], names: Collection[str]) -> dict[str, str | None]:
    """Name -> hash of its ends, of some files of a folder, many at once.

    Args:
        folder: A local path or URL.
        sizes: Name -> bytes.
        names: Of the files; those without a size are passed over.
    """
    wanted = sorted(name for name in names if name in sizes)
    if not wanted:
        return {}
    with ThreadPoolExecutor(_THREADS if storage.is_local(folder) else _REMOTE_THREADS) as pool:
        read = pool.map(functools.partial(_ends_in, folder), wanted, [sizes[name] for name in wanted])
        return dict(zip(wanted, read, strict=True))


def _ends_in(folder: str, name: str, size: int) -> str | None:
    return head_tail_hash(storage.join(folder, name), size)
