"""Hashes the head and the tail of source files, to tell whether a file is still the one that a shard was made from.

The hash covers the first and the last 64 KiB: reading whole files would cost as much as the ingest. A change in the middle that
keeps the size is not detected. Sources with many files hash them when a unit is made, and again only if a listing doesn't
prove that the file is unchanged.
"""

import functools
import hashlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from pipeline.common import storage

_BYTES = 1 << 16
_THREADS, _REMOTE_THREADS = 16, 64  # object stores have a high latency, but serve many requests at once


def head_tail_hash(path: str, size: int) -> str | None:
    """Return 16 hex digits of the SHA-256 of the first and last 64 KiB of a file of `size` bytes; None if it doesn't exist."""
    try:
        digest = hashlib.sha256(storage.read_range(path, 0, min(size, _BYTES)))
        digest.update(storage.read_range(path, max(0, size - _BYTES), size))
    except FileNotFoundError:
        return None
    return digest.hexdigest()[:16]


def head_tail_hashes(folder: str, sizes: Mapping[str, int], names: Collection[str]) -> dict[str, str | None]:
    """Return file name -> `head_tail_hash`, computed in parallel.

    Args:
        folder: A local path or URL.
        sizes: File name -> size in bytes.
        names: Files to hash; those without a size are ignored.
    """
    known = sorted(name for name in names if name in sizes)
    if not known:
        return {}
    with ThreadPoolExecutor(_THREADS if storage.is_local(folder) else _REMOTE_THREADS) as pool:
        hashes = pool.map(functools.partial(_hash_in, folder), known, [sizes[name] for name in known])
        return dict(zip(known, hashes, strict=True))


def _hash_in(folder: str, name: str, size: int) -> str | None:
    return head_tail_hash(storage.join(folder, name), size)
