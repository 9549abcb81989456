"""Plans the ingest: decides which source files become which episode shards, before any work starts.

A work unit is one episode shard, made from one or more whole source files, so units are independent. The price: a shard can't
be smaller than the output of one source file. If a source states the sizes of its files, the plan uses them instead of the
real sizes, so the plan doesn't change when a damaged file is repaired.
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
    """One episode shard to make.

    Attributes:
        shard: File name of the shard.
        split: Split of its episodes.
        sources: Source files it is made from, in order.
        source_bytes: Total size of the source files in bytes.
        inputs: Everything that decides the shard's bytes; stored in its manifest, with its fingerprint.
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
    existing: ShardAssignment | None = None,
) -> list[WorkUnit]:
    """Return all work units of a data set, in the order of their shards.

    Args:
        source: The source of the episodes.
        splits: Splits to ingest; None ingests all.
        max_episodes: Take only the first N episodes of each split.
        shard_bytes: Approximate size of a shard in bytes.
        known_hashes: File name in manifests -> its `head_tail_hash`; these files aren't opened.
        existing: Assignment of the existing shards, if files of the source may be added or removed; see `shard_assignment`.

    Raises:
        SourceError: The source has no files, or two files would give episodes with the same key.
        ConfigError: The source has no such split, or the split's name can't be part of a shard's name.
    """
    with source.cached_listing():
        return _make_plan(source, splits, max_episodes, shard_bytes, known_hashes or {}, existing or {})


def _make_plan(
    source: Source,
    splits: Sequence[str] | None,
    max_episodes: int | None,
    shard_bytes: int,
    known_hashes: Mapping[str, str],
    existing: ShardAssignment,
) -> list[WorkUnit]:
    files = source.plan()
    if not files:
        raise SourceError(f"{source.folder} holds no files of episodes")
    known_splits = list(dict.fromkeys(file.split for file in files))
    for split in splits or []:
        if split not in known_splits:
            raise ConfigError(f"{source.folder} has no split {split!r}; it has {', '.join(known_splits)}")
    files = [file for file in files if not splits or file.split in splits]
    _check_names(source, files)
    files = limited(files, max_episodes)
    sizes = source.file_sizes()
    target = shard_bytes / output_ratio(_first_camera(source), files, sizes)

    def group(chosen: Sequence[SourceShard]) -> list[list[SourceShard]]:
        return grouped(chosen, [output_share(file) * _expected_size(file, sizes) for file in chosen], target)

    new_hashes = {} if source.many_files else _unknown_hashes(source, files, sizes, known_hashes, None)
    hashes = ChainMap(new_hashes, cast(MutableMapping[str, str | None], known_hashes))
    common = {"format": source.format, **source.inputs()}
    return [
        WorkUnit(
            shard=shard_name(split, number, "tar"),
            split=split,
            sources=tuple(chosen),
            source_bytes=sum(sizes.get(file.file, 0) for file in chosen),
            inputs={**common, "split": split, "sources": [_identity(source, file, sizes, hashes) for file in chosen]},
        )
        for split, number, chosen in numbered_shards(files, group, existing, source.divides_files)
    ]


def with_hashes(
    units: Sequence[WorkUnit], source: Source, known_hashes: Mapping[str, str], compared: Collection[str]
) -> list[WorkUnit]:
    """Return the units of a source with many files, with the hashes of the files to compare; other files aren't opened.

    Args:
        units: The plan.
        source: The source of the files.
        known_hashes: See `make_plan`.
        compared: Names, as in manifests, of the files that existing shards or the lock file describe.
    """
    files = [file for unit in units for file in unit.sources]
    new_hashes = _unknown_hashes(source, files, source.file_sizes(), known_hashes, compared)
    hashes = ChainMap(new_hashes, cast(MutableMapping[str, str | None], known_hashes))
    return [dataclasses.replace(unit, inputs=with_head_tail_hashes(unit.inputs, hashes)) for unit in units]


def _unknown_hashes(
    source: Source,
    files: Sequence[SourceShard],
    sizes: Mapping[str, int],
    known: Mapping[str, str],
    compared: Collection[str] | None,
) -> dict[str, str | None]:
    """Return file name in manifests -> hash, for files that aren't in `known`; with `compared`, only for these."""
    names = ((file.file, printable_name(file.file)) for file in files)
    unread = {file for file, name in names if name not in known and (compared is None or name in compared)}
    return {printable_name(file): digest for file, digest in head_tail_hashes(source.folder, sizes, unread).items()}


def _check_names(source: Source, files: Sequence[SourceShard]) -> None:
    """Refuse split names that can't be part of a shard's name, and files whose episodes would have the same key."""
    for split in dict.fromkeys(file.split for file in files):
        if not is_split_name(split):
            raise ConfigError(
                f"{source.folder} has a split {split!r}, which can't be part of a shard's name: only letters, digits, _ and - "
                "are allowed. Rename the split, or list the other splits with --splits"
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
    """Return the files, or parts of files, that hold the first `max_episodes` of each split.

    A file with an unknown number of episodes counts as one episode.
    """
    if max_episodes is None:
        return list(files)
    left: dict[str, int] = {}
    chosen = []
    for file in files:
        remaining = left.get(file.split, max_episodes)
        records = 1 if file.records is None else file.records
        if remaining > 0:
            chosen.append(file if records <= remaining else dataclasses.replace(file, take=remaining))
        left[file.split] = remaining - records
    return chosen


def _first_camera(source: Source) -> Source:
    """Return the source with the first camera of its data set, so that all cameras get the same groups of files."""
    first = copy.copy(source)
    first.entry = first_camera_entry(source.entry)
    return first


def _expected_size(file: SourceShard, sizes: dict[str, int]) -> float:
    """Return the stated size of a file in bytes, or its real size if none is stated."""
    return file.stated_bytes or sizes.get(file.file, 0)


def output_share(file: SourceShard) -> float:
    """Return the fraction of a file's episodes to ingest."""
    return 1.0 if file.take is None or not file.records else file.take / file.records


def grouped(files: Sequence[SourceShard], weights: Sequence[float], target: float) -> list[list[SourceShard]]:
    """Group neighbouring files of one split; each group is as large as `target` allows, and has at least one file.

    Args:
        files: Files in order, split by split.
        weights: Weight of each file.
        target: Largest total weight of a group with more than one file.
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


def output_ratio(source: Source, files: Sequence[SourceShard], sizes: dict[str, int]) -> float:
    """Estimate the bytes of frames per source byte, from the first episode of the first few files.

    Rounded to a power of two, so that the plan doesn't change when one of these files is repaired. 1 if nothing can be read.
    """
    ratios = []
    for file in files[:_SAMPLED_FILES]:
        _, (episode,) = next(read_guarded(dataclasses.replace(file, take=1), [source]), (0, [None]))
        size = _expected_size(file, sizes)
        if isinstance(episode, Episode) and size:
            ratios.append(sum(map(len, episode.frames)) * (file.records or 1) / size)
    return 2.0 ** round(math.log2(statistics.median(ratios))) if ratios else 1.0


def _identity(source: Source, file: SourceShard, sizes: dict[str, int], hashes: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what identifies a file: its name, its size, the part to take and, if the plan knows it, its `head_tail_hash`."""
    name = printable_name(file.file)
    identity: dict[str, Any] = {"file": name, "size": sizes.get(file.file), "take": file.take}
    if source.entry.test_episodes or source.divides_files:
        identity["first"] = file.first
    if file.text:
        identity["text"] = file.text
    if file.only is not None:
        identity["only"] = list(file.only)
    if file.file in sizes and name in hashes:
        identity[HEAD_TAIL_HASH] = hashes[name]
    return identity
