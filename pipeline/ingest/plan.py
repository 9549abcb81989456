"""The plan: which source files become which episode shards, decided before any work.

A unit of work is one episode shard, made of one or more whole source files, so units need nothing of each other. The price: a
shard can't be smaller than what one source file gives. Where a source states its sizes, the plan follows these and not the
files', so that it stays the same when a damaged file is repaired.
"""

import copy
import dataclasses
import math
import statistics
from collections import ChainMap
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.manifests import HEAD_TAIL_HASH, with_head_tail_hashes
from pipeline.config.catalog import first_camera_entry
from pipeline.episodes.episode import Episode
from pipeline.episodes.naming import is_split_name, printable_name, shard_name
from pipeline.ingest.head_tail import head_tail_hashes
from pipeline.ingest.shard_assignment import ShardAssignment, numbered_shards
from pipeline.sources.base import Source, SourceShard
from pipeline.sources.guard import read_guarded

_SAMPLED_FILES = 3


@dataclass(frozen=True)
class WorkUnit:
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
    known_hashes: Mapping[str, str] | None = None,
    made: ShardAssignment | None = None,
) -> list[WorkUnit]:
    """All units of a data set, in the order of their shards.

    Args:
        source: Where the episodes come from.
        splits: Only these; None takes all there are.
        max_episodes: Of each split, at most so many from its beginning.
        shard_bytes: About how large a shard should become.
        known_hashes: File, as records write it, -> hash of its ends, of files that needn't be opened to know it.
        made: What shards are there already, of a source whose files come and go; see `pipeline.ingest.shard_assignment`.

    Raises:
        SourceError: The source has no files, or two files would give episodes of one key.
        ConfigError: There is no such split, or shards can't be called after it.
    """
    with source.cached_listing():
        return _make_plan(source, splits, max_episodes, shard_bytes, known_hashes or {}, made or {})


def _make_plan(
    source: Source,
    splits: Sequence[str] | None,
    max_episodes: int | None,
    shard_bytes: int,
    known_hashes: Mapping[str, str],
    made: ShardAssignment,
) -> list[WorkUnit]:
    files = source.plan()
    if not files:
        raise SourceError(f"{source.folder} holds no files of episodes")
    known = list(dict.fromkeys(file.split for file in files))
    for split in splits or []:
        if split not in known:
            raise ConfigError(f"{source.folder} has no split {split!r}; it has {', '.join(known)}")
    files = [file for file in files if not splits or file.split in splits]
    _check_names(source, files)
    files = limited(files, max_episodes)
    sizes = source.file_sizes()
    target = shard_bytes / shrinkage(_measured(source), files, sizes)

    def group(chosen: Sequence[SourceShard]) -> list[list[SourceShard]]:
        return grouped(chosen, [output_share(file) * _expected_size(file, sizes) for file in chosen], target)

    read = {} if source.many_files else _read_unknown(source, files, sizes, known_hashes, None)
    ends = ChainMap(read, cast(MutableMapping[str, str | None], known_hashes))
    common = {"format": source.format, **source.inputs()}
    return [
        WorkUnit(
            shard=shard_name(split, number, "tar"),
            split=split,
            sources=tuple(chosen),
            source_bytes=sum(sizes.get(file.file, 0) for file in chosen),
            inputs={**common, "split": split, "sources": [_identity(source, file, sizes, ends) for file in chosen]},
        )
        for split, number, chosen in numbered_shards(files, group, made, source.divides_files)
    ]


def with_hashes(
    units: Sequence[WorkUnit], source: Source, known_hashes: Mapping[str, str], compared: Collection[str]
) -> list[WorkUnit]:
    """Units of a source of many files with the ends of those that are held against something; the others stay unread.

    Args:
        units: The plan.
        source: Of the files.
        known_hashes: See `make_plan`.
        compared: Names, as records write them, of the files of which shards or lock files say something.
    """
    files = [file for unit in units for file in unit.sources]
    read = _read_unknown(source, files, source.file_sizes(), known_hashes, compared)
    ends = ChainMap(read, cast(MutableMapping[str, str | None], known_hashes))
    return [dataclasses.replace(unit, inputs=with_head_tail_hashes(unit.inputs, ends)) for unit in units]


def _read_unknown(
    source: Source,
    files: Sequence[SourceShard],
    sizes: Mapping[str, int],
    known: Mapping[str, str],
    compared: Collection[str] | None,
) -> dict[str, str | None]:
    """Name as records write it -> hash of its ends, of those files whose ends aren't known, or of those `compared` alone."""
    names = ((file.file, printable_name(file.file)) for file in files)
    unread = {file for file, name in names if name not in known and (compared is None or name in compared)}
    return {printable_name(file): ends for file, ends in head_tail_hashes(source.folder, sizes, unread).items()}


def _check_names(source: Source, files: Sequence[SourceShard]) -> None:
    """Refuse splits that no shard can be called after, and files whose episodes would have one key."""
    for split in dict.fromkeys(file.split for file in files):
        if not is_split_name(split):
            raise ConfigError(
                f"{source.folder} has a split {split!r}, and shards can't be called so: their names can "
                "hold letters, digits, _ and - alone. Rename it, or leave it out by naming the others with --splits"
            )
    seen: dict[str, str] = {}
    for file in files:
        key = file.key(file.first or 0 if source.divides_files else 0)
        if seen.setdefault(key, file.file) != file.file:
            raise SourceError(
                f"{source.folder}: the files {seen[key]!r} and {file.file!r} would both give an episode with the key {key}. "
                "Rename or remove one of them"
            )


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
    first.entry = first_camera_entry(source.entry)
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


def _identity(source: Source, file: SourceShard, sizes: dict[str, int], ends: Mapping[str, str | None]) -> dict[str, Any]:
    """What a file is known by: name, size and, as far as a plan reads them, a hash of both its ends (`head_tail`)."""
    known: dict[str, Any] = {"file": printable_name(file.file), "size": sizes.get(file.file), "take": file.take}
    if source.entry.test_episodes or source.divides_files:
        known["first"] = file.first
    if file.text:
        known["text"] = file.text
    if file.only is not None:
        known["only"] = list(file.only)
    if file.file in sizes and known["file"] in ends:
        known[HEAD_TAIL_HASH] = ends[known["file"]]
    return known
