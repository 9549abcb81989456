"""Episode shard files: writes equal episodes as equal bytes, and reads without missing anything silently.

A shard is a plain WebDataset tar. This reader is stricter than general ones: it requires the archive's end marker and, if the
shard's manifest is next to it, the manifest's size and number of samples. A shard that lost its tail is an error.
"""

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.common.manifests import ShardManifest, manifest_path, read_manifest
from pipeline.episodes.episode import Episode

_BLOCK = tarfile.BLOCKSIZE
_END = b"\0" * _BLOCK
MAX_MEMBER_BYTES = 4 << 30
# Smallest block to hash and write: calls per frame would cost as much as hashing.
_BLOCK_BYTES = 1 << 20


class Readable(Protocol):
    """The input of a shard."""

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes; fewer only at the end."""


class EpisodeShardWriter:
    """Writes episodes into a tar, in the order of `add`.

    Headers have no time, owner or host. Use it as a context manager; only a block without an error writes the end marker.

    Attributes:
        entries: One mapping per episode: its facts, and `offset` and `size` of its sample in the file, in bytes.
        frames: Number of written frames.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self._position = 0
        self._keys: set[str] = set()
        self.entries: list[dict[str, Any]] = []
        self.frames = 0

    def __enter__(self) -> "EpisodeShardWriter":
        self._file = self._path.open("wb")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            padding = -(self._position + 2 * _BLOCK) % tarfile.RECORDSIZE
            self._write([_END * 2, b"\0" * padding])
        self._file.close()

    @property
    def size(self) -> int:
        """Number of written bytes."""
        return self._position

    @property
    def sha256(self) -> str:
        """SHA-256 of the written bytes, in hex."""
        return self._hash.hexdigest()

    def add(self, episode: Episode) -> None:
        """Appends an episode.

        Raises:
            ValueError: Its key contains a dot or a slash, or is a duplicate.
        """
        if "." in episode.key or "/" in episode.key or episode.key in self._keys:
            raise ValueError(f"{episode.key!r} can't be a key: it contains a dot or a slash, or is a duplicate")
        self._keys.add(episode.key)
        start = self._position
        for ending, pieces in episode.to_sample().items():
            size = sum(map(len, pieces))
            self._write([_header(f"{episode.key}.{ending}", size), *pieces, b"\0" * (-size % _BLOCK)])
        self.entries.append({**episode.facts(), "offset": start, "size": self._position - start})
        self.frames += episode.num_frames

    def _write(self, pieces: Sequence[bytes]) -> None:
        for block in _blocks(pieces):
            self._file.write(block)
            self._hash.update(block)
            self._position += len(block)


def _blocks(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """Joins pieces into blocks of at least `_BLOCK_BYTES`, except the last."""
    start = size = 0
    for end, piece in enumerate(pieces, 1):
        size += len(piece)
        if size >= _BLOCK_BYTES or end == len(pieces):
            yield b"".join(pieces[start:end])
            start, size = end, 0


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def open_shard(path: str | Path) -> Iterator[Episode]:
    """Yields the episodes of a shard, in order.

    Args:
        path: A local path or URL of the tar. If its manifest is next to it, the shard must match it.

    Raises:
        ShardError: The shard is missing, truncated or damaged, or differs from its manifest.
    """
    path = str(path)
    manifest = _checked_manifest(path)
    count = 0
    with storage.open_read(path) as file:
        for key, members in _samples(file, path):
            yield Episode.from_sample(members, f"{path}, sample {key}")
            count += 1
    if manifest is not None and count != manifest.samples:
        raise ShardError(
            f"{path} holds {count} episodes, but its manifest says {manifest.samples}; ingest it again with --overwrite"
        )


def count_samples(file: Readable, where: str) -> int:
    """Returns the number of samples in an open shard, up to its end marker; decodes nothing.

    Raises:
        ShardError: The shard is truncated or damaged.
    """
    return sum(1 for _ in _samples(file, where))


def read_sample(path: str, offset: int, size: int) -> Episode:
    """Returns one episode of a shard by the place of its sample, without reading the rest.

    Raises:
        ShardError: The place has no complete sample.
    """
    data = storage.read_range(path, offset, offset + size)
    if len(data) != size:
        raise ShardError(f"{path} ends before byte {offset + size}, but its index has a sample there; ingest it again")
    members: dict[str, bytes] = {}
    position = 0
    while position < size:
        name, length = _parse_header(data[position : position + _BLOCK], path)
        members[name.partition(".")[2]] = data[position + _BLOCK : position + _BLOCK + length]
        position += _BLOCK + length + (-length % _BLOCK)
    return Episode.from_sample(members, f"{path}, byte {offset}")


def _checked_manifest(path: str) -> ShardManifest | None:
    if not storage.exists(path):
        raise ShardError(f"{path} does not exist")
    if not storage.exists(manifest_path(path)):
        return None
    manifest = read_manifest(manifest_path(path))
    actual = storage.size(path)
    if actual != manifest.bytes:
        raise ShardError(f"{path} has {actual} bytes, but its manifest says {manifest.bytes}; delete both and ingest again")
    return manifest


def _samples(file: Readable, where: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields key and members of each sample: consecutive members of one key."""
    current: str | None = None
    members: dict[str, bytes] = {}
    for name, data in _members(file, where):
        key, _, ending = name.partition(".")
        if current is not None and key != current:
            yield current, members
            members = {}
        current = key
        members[ending] = data
    if current is not None:
        yield current, members


def _members(file: Readable, where: str) -> Iterator[tuple[str, bytes]]:
    while True:
        header = file.read(_BLOCK)
        if header == _END:
            return
        name, size = _parse_header(header, where)
        data = file.read(size)
        padding = file.read(-size % _BLOCK)
        if len(data) + len(padding) != size + (-size % _BLOCK):
            raise _truncated(where)
        yield name, data


def _parse_header(header: bytes, where: str) -> tuple[str, int]:
    if len(header) < _BLOCK:
        raise _truncated(where)
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise ShardError(f"{where} is damaged ({error}); delete it and its manifest, and ingest again") from error
    if not info.isreg() or not 0 <= info.size <= MAX_MEMBER_BYTES:
        raise ShardError(f"{where}: {info.name!r} of {info.size} bytes is not a member of an episode shard")
    return info.name, info.size


def _truncated(where: str) -> ShardError:
    return ShardError(f"{where} is truncated: its end marker is missing; delete it and its manifest, and ingest again")
