"""Episode shards as files: written so that equal episodes give equal bytes, read so that nothing is missing unnoticed.

A shard is a plain WebDataset tar. The reader is stricter than general ones: it wants the archive's end marker and, where the
shard's record lies beside it, the stated size and number of samples. A shard that lost its tail is an error, not a short read.
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
# Hashed and written at once, at least: frame by frame, the calls would cost as much as the hashing itself.
_WRITTEN = 1 << 20


class Readable(Protocol):
    """What a shard is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; fewer only at the end."""


class EpisodeShardWriter:
    """Writes episodes into a tar, one after the other, in the order of `add`.

    Headers carry no time, owner or host. Use it as a context manager; the end marker is written only when the block ends well.

    Attributes:
        entries: One mapping per episode: its facts, and `offset` and `size` of its sample in the file, in bytes.
        frames: Frames written.
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
        """Bytes written."""
        return self._position

    @property
    def sha256(self) -> str:
        """SHA-256 of what is written, in hex."""
        return self._hash.hexdigest()

    def add(self, episode: Episode) -> None:
        """Append an episode.

        Raises:
            ValueError: Its key holds a dot or a slash, or was there before.
        """
        if "." in episode.key or "/" in episode.key or episode.key in self._keys:
            raise ValueError(f"{episode.key!r} can't be a key: it holds a dot or a slash, or is there already")
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
    """Pieces joined into blocks of at least `_WRITTEN` bytes each, but for the last."""
    start = size = 0
    for end, piece in enumerate(pieces, 1):
        size += len(piece)
        if size >= _WRITTEN or end == len(pieces):
            yield b"".join(pieces[start:end])
            start, size = end, 0


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def open_shard(path: str | Path) -> Iterator[Episode]:
    """The episodes of a shard, in order.

    Args:
        path: A local path or URL of the tar. Where its record lies beside it, the shard must agree with it.

    Raises:
        ShardError: The shard isn't there, is cut short, damaged, or disagrees with its record.
    """
    path = str(path)
    record = _checked_record(path)
    count = 0
    with storage.open_read(path) as file:
        for key, members in _samples(file, path):
            yield Episode.from_sample(members, f"{path}, sample {key}")
            count += 1
    if record is not None and count != record.samples:
        raise ShardError(f"{path} holds {count} episodes, its record says {record.samples}; ingest it again with --overwrite")


def count_samples(file: Readable, where: str) -> int:
    """How many samples an opened shard holds, up to its end marker; nothing is decoded.

    Raises:
        ShardError: The shard is cut short or damaged.
    """
    return sum(1 for _ in _samples(file, where))


def read_sample(path: str, offset: int, size: int) -> Episode:
    """One episode of a shard, given where its sample lies, without reading the rest.

    Raises:
        ShardError: There is no whole sample.
    """
    data = storage.read_range(path, offset, offset + size)
    if len(data) != size:
        raise ShardError(f"{path} ends before byte {offset + size}, where its index has a sample; ingest it again")
    members: dict[str, bytes] = {}
    position = 0
    while position < size:
        name, length = _parse_header(data[position : position + _BLOCK], path)
        members[name.partition(".")[2]] = data[position + _BLOCK : position + _BLOCK + length]
        position += _BLOCK + length + (-length % _BLOCK)
    return Episode.from_sample(members, f"{path}, byte {offset}")


def _checked_record(path: str) -> ShardManifest | None:
    if not storage.exists(path):
        raise ShardError(f"{path} is not there")
    if not storage.exists(manifest_path(path)):
        return None
    record = read_manifest(manifest_path(path))
    actual = storage.size(path)
    if actual != record.bytes:
        raise ShardError(f"{path} has {actual} bytes, its record says {record.bytes}; delete both and ingest again")
    return record


def _samples(file: Readable, where: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Consecutive members of one key, together."""
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
            raise _cut_short(where)
        yield name, data


def _parse_header(header: bytes, where: str) -> tuple[str, int]:
    if len(header) < _BLOCK:
        raise _cut_short(where)
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise ShardError(f"{where} is damaged ({error}); delete it and its record, and ingest again") from error
    if not info.isreg() or not 0 <= info.size <= MAX_MEMBER_BYTES:
        raise ShardError(f"{where}: {info.name!r} of {info.size} bytes is no member of an episode shard")
    return info.name, info.size


def _cut_short(where: str) -> ShardError:
    return ShardError(f"{where} is cut short: its end marker is missing; delete it and its record, and ingest again")
