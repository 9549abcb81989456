"""Decides which source files become which shards, and keeps the assignment stable when files are added or removed.

A plan groups files in order, so one new file would shift all groups after it. If existing shards differ from the plan,
they keep their files, and the remaining files get new shards with unused numbers. So rerunning the same command only adds what
is new. The price: a shard that lost some of its files becomes smaller, and small additions make small shards. To regroup all
files, use another output folder.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from pipeline.episodes.index import read_manifests
from pipeline.episodes.naming import parse_shard_name, printable_name
from pipeline.sources.base import SourceShard

# A file's name in manifests, and the index of its first record in the split; None if files aren't divided.
FileRange = tuple[str, int | None]
# Shard file name -> the file ranges it was made from, in order.
ShardAssignment = Mapping[str, Sequence[FileRange]]
_Group = Callable[[Sequence[SourceShard]], list[list[SourceShard]]]


def read_assignment(folder: str, divides_files: bool) -> dict[str, list[FileRange]]:
    """Read from the manifests of a data set which files became which shards.

    Args:
        folder: Folder of the data set.
        divides_files: Whether several ranges may lie in one file.

    Raises:
        ShardError: A file has the name of a manifest but isn't one.
    """
    return {
        manifest.shard: [(item["file"], item.get("first") if divides_files else None) for item in manifest.inputs["sources"]]
        for manifest in read_manifests(folder)
    }


def assigned_files(assignment: ShardAssignment) -> set[str]:
    """Return the names of all files that shards were made from."""
    return {file for ranges in assignment.values() for file, _ in ranges}


def numbered_shards(
    files: Sequence[SourceShard], group: _Group, existing: ShardAssignment, divides_files: bool
) -> Iterator[tuple[str, int, list[SourceShard]]]:
    """Yield (split, number, files) of each shard of a plan, split by split.

    Args:
        files: All files to ingest, split by split, in order.
        group: Groups neighbouring files into shards.
        existing: The shards that exist already.
        divides_files: See `read_assignment`.
    """
    for split, split_files in itertools.groupby(files, lambda file: file.split):
        parsed = {parse_shard_name(name): ranges for name, ranges in existing.items()}
        existing_in_split = {name[1]: list(ranges) for name, ranges in parsed.items() if name is not None and name[0] == split}
        for number, shard_files in sorted(_groups(list(split_files), group, existing_in_split, divides_files).items()):
            yield split, number, shard_files


def _groups(
    files: list[SourceShard], group: _Group, existing: Mapping[int, list[FileRange]], divides_files: bool
) -> dict[int, list[SourceShard]]:
    """Return shard number -> its files, for the files of one split."""
    planned = dict(enumerate(group(files)))
    if all([_range(file, divides_files) for file in planned.get(number, [])] == ranges for number, ranges in existing.items()):
        return planned
    unassigned = {_range(file, divides_files): file for file in files}
    kept = {number: [unassigned.pop(item) for item in ranges if item in unassigned] for number, ranges in existing.items()}
    unused = (number for number in itertools.count() if number not in existing)
    added = zip(unused, group([file for file in files if _range(file, divides_files) in unassigned]), strict=False)
    return {**{number: shard_files for number, shard_files in kept.items() if shard_files}, **dict(added)}


def _range(file: SourceShard, divides_files: bool) -> FileRange:
    return printable_name(file.file), file.first if divides_files else None
