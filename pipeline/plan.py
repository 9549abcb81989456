"""The plan: which source files become which episode shards, decided before any work.

A unit of work is one episode shard, made of one or more whole source files, so units need nothing of each other. The price: a
shard can't be smaller than what one source file gives. Where a source states its sizes, the plan follows these and not the
files', so that it stays the same when a damaged file is repaired.
"""

import copy
import dataclasses
import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.catalog import first_view
from pipeline.episode import Episode
from pipeline.errors import ConfigError, SourceError
from pipeline.naming import shard_name
from pipeline.sources.base import Source, SourceShard
from pipeline.sources.guard import read_guarded

FORMAT_VERSION = 1
_SAMPLED_FILES = 3
_IDENTITY_BYTES = 1 << 16
_THREADS, _REMOTE_THREADS = 16, 64  # a store answers late, but many at once


@dataclass(frozen=True)
class Unit:
    """One episode shard to be made.

    Attributes:
        shard: Its file name.
        split: Of its episodes.
        sources: The files it is made of, in order.
        source_bytes: Their size.
        inputs: All that decides the shard's bytes; its record carries it and its fingerprint.
    """

    shard: str
    split: str
    sources: tuple[SourceShard, ...]
    source_bytes: int
    inputs: dict[str, Any]


def make_plan(
    source: Source,
    splits: Sequence[str] | None,
    max_episodes: int | None,
    shard_bytes: int,
    known_ends: Mapping[str, str] | None = None,
) -> list[Unit]:
    """All units of a data set, in the order of their shards.

    Args:
        source: Where the episodes come from.
        splits: Only these; None takes all there are.
        max_episodes: Of each split, at most so many from its beginning.
        shard_bytes: About how large a shard should become.
        known_ends: File -> hash of its ends, of files that needn't be opened to know it.

    Raises:
        SourceError: The source has no files.
        ConfigError: There is no such split.
    """
    files = source.plan()
    if not files:
        raise SourceError(f"{source.folder} holds no files of episodes")
    known = list(dict.fromkeys(file.split for file in files))
    for split in splits or []:
        if split not in known:
            raise ConfigError(f"{source.folder} has no split {split!r}; it has {', '.join(known)}")
    files = limited([file for file in files if not splits or file.split in splits], max_episodes)
    sizes = source.file_sizes()
    weights = [output_share(file) * _expected_size(file, sizes) for file in files]
    groups = grouped(files, weights, shard_bytes / shrinkage(_measured(source), files, sizes))
    ends = dict(known_ends or {})
    unread = sorted({file.file for file in files if file.file in sizes} - ends.keys())
    with ThreadPoolExecutor(_THREADS if storage.is_local(source.folder) else _REMOTE_THREADS) as pool:
        paths = [storage.join(source.folder, name) for name in unread]
        ends.update(zip(unread, pool.map(_ends_sha256, paths, [sizes[name] for name in unread]), strict=True))
    identities = {file: _identity(source, file, sizes, ends) for file in files}
    common = {"format": FORMAT_VERSION, **source.inputs()}
    numbers = dict.fromkeys(known, 0)
    units = []
    for group in groups:
        split = group[0].split
        units.append(
            Unit(
                shard=shard_name(split, numbers[split], "tar"),
                split=split,
                sources=tuple(group),
                source_bytes=sum(sizes.get(file.file, 0) for file in group),
                inputs={**common, "split": split, "sources": [identities[file] for file in group]},
            )
        )
        numbers[split] += 1
    return units


def read_ends(units: Sequence[Unit]) -> dict[str, str]:
    """File -> hash of its ends, as a plan has read them."""
    sources = [one for unit in units for one in unit.inputs["sources"]]
    return {one["file"]: one["ends_sha256"] for one in sources if "ends_sha256" in one}


def limited(files: Sequence[SourceShard], max_episodes: int | None) -> list[SourceShard]:
    """The files, or parts of them, that hold the first `max_episodes` of each split.

    A file that doesn't say how many episodes it holds counts as one.
    """
    if max_episodes is None:
        return list(files)
    left: dict[str, int] = {}
    wanted = []
    for file in files:
        remaining = left.get(file.split, max_episodes)
        records = 1 if file.records is None else file.records
        if remaining > 0:
            wanted.append(file if records <= remaining else dataclasses.replace(file, take=remaining))
        left[file.split] = remaining - records
    return wanted


def _measured(source: Source) -> Source:
    """The source itself or, of a data set that the catalog has once a camera, its first: so that all of them group alike."""
    first = copy.copy(source)
    first.entry = first_view(source.entry)
    return first


def _expected_size(file: SourceShard, sizes: dict[str, int]) -> float:
    """Bytes of a file: as stated, else as it is."""
    return file.stated_bytes or sizes.get(file.file, 0)


def output_share(file: SourceShard) -> float:
    """Which share of a file's episodes is wanted."""
    return 1.0 if file.take is None or not file.records else file.take / file.records


def grouped(files: Sequence[SourceShard], weights: Sequence[float], target: float) -> list[list[SourceShard]]:
    """Neighbouring files of one split together, each group as large as fits into `target`, but at least one file.

    Args:
        files: In order, split by split.
        weights: Of each file.
        target: Greatest sum of weights of a group of more than one.
    """
    groups: list[list[SourceShard]] = []
    filled = 0.0
    for file, weight in zip(files, weights, strict=True):
        if groups and groups[-1][0].split == file.split and filled + weight <= target:
            groups[-1].append(file)
            filled += weight
        else:
            groups.append([file])
            filled = weight
    return groups


def shrinkage(source: Source, files: Sequence[SourceShard], sizes: dict[str, int]) -> float:
    """About how many bytes of frames come of one source byte, from the first episode of the first few files.

    Rounded to a power of two, so that the plan stays the same when one of these files is repaired. 1 where nothing can be read.
    """
    ratios = []
    for file in files[:_SAMPLED_FILES]:
        _, (episode,) = next(read_guarded(dataclasses.replace(file, take=1), [source]), (0, [None]))
        size = _expected_size(file, sizes)
        if isinstance(episode, Episode) and size:
            ratios.append(sum(map(len, episode.frames)) * (file.records or 1) / size)
    return 2.0 ** round(math.log2(statistics.median(ratios))) if ratios else 1.0


def _identity(source: Source, file: SourceShard, sizes: dict[str, int], ends: dict[str, str]) -> dict[str, Any]:
    """What a file is known by: name, size, a hash of both its ends. Reading all of it would cost as much as the work."""
    known: dict[str, Any] = {"file": file.file, "size": sizes.get(file.file), "take": file.take}
    if source.entry.test_episodes or source.divides_files:
        known["first"] = file.first
    if file.text:
        known["text"] = file.text
    if file.only is not None:
        known["only"] = list(file.only)
    if file.file in sizes:
        known["ends_sha256"] = ends[file.file]
    return known


def _ends_sha256(path: str, size: int) -> str:
    """First 16 hex digits of the SHA-256 of the first and the last 64 KiB of a file of `size` bytes."""
    digest = hashlib.sha256(storage.read_range(path, 0, min(size, _IDENTITY_BYTES)))
    digest.update(storage.read_range(path, max(0, size - _IDENTITY_BYTES), size))
    return digest.hexdigest()[:16]
