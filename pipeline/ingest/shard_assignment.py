"""Which files became which shards: kept as it is while files come and go.

A plan groups files in order, so one more file would shift all groups behind it. Where shards are there that a plan would group
in another way, these keep their files, and what they don't hold gets shards of its own, by the numbers that are free. So the
same command simply adds what is new. The price: a shard whose files went away partly is smaller than it could be, and small
additions make small shards; another output folder groups everything anew.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from pipeline.episodes.index import read_manifests
from pipeline.episodes.naming import parse_shard_name, printable_name
from pipeline.sources.base import SourceShard

# A file as records write it, and where in it a part of it begins; None where files aren't divided.
FileRange = tuple[str, int | None]
# Shard's file name -> the places that it was made of, in order.
ShardAssignment = Mapping[str, Sequence[FileRange]]
_Group = Callable[[Sequence[SourceShard]], list[list[SourceShard]]]


def read_assignment(folder: str, divides_files: bool) -> dict[str, list[FileRange]]:
    """What the records in a data set's folder say of which files became which shards.

    Args:
        folder: Of the data set.
        divides_files: Whether several places may lie in one file.

    Raises:
        ShardError: A file that is named like a record isn't one.
    """
    return {
        record.shard: [(one["file"], one.get("first") if divides_files else None) for one in record.inputs["sources"]]
        for record in read_manifests(folder)
    }


def assigned_files(layout: ShardAssignment) -> set[str]:
    """All files that shards are made of."""
    return {file for places in layout.values() for file, _ in places}


def numbered_shards(
    files: Sequence[SourceShard], group: _Group, made: ShardAssignment, divides_files: bool
) -> Iterator[tuple[str, int, list[SourceShard]]]:
    """(split, number, files) of each shard of a plan, split by split.

    Args:
        files: All that are wanted, split by split, in order.
        group: Makes groups of neighbours of files.
        made: The shards that are there.
        divides_files: See `read_assignment`.
    """
    for split, chosen in itertools.groupby(files, lambda file: file.split):
        parsed = {parse_shard_name(name): places for name, places in made.items()}
        there = {known[1]: list(places) for known, places in parsed.items() if known is not None and known[0] == split}
        for number, of_shard in sorted(_groups(list(chosen), group, there, divides_files).items()):
            yield split, number, of_shard


def _groups(
    files: list[SourceShard], group: _Group, there: Mapping[int, list[FileRange]], divides_files: bool
) -> dict[int, list[SourceShard]]:
    """Number of a shard -> its files, of one split."""
    anew = dict(enumerate(group(files)))
    if all([_place(file, divides_files) for file in anew.get(number, [])] == known for number, known in there.items()):
        return anew
    places = {_place(file, divides_files): file for file in files}
    kept = {number: [places.pop(place) for place in known if place in places] for number, known in there.items()}
    free = (number for number in itertools.count() if number not in there)
    added = zip(free, group([file for file in files if _place(file, divides_files) in places]), strict=False)
    return {**{number: known for number, known in kept.items() if known}, **dict(added)}


def _place(file: SourceShard, divides_files: bool) -> FileRange:
    return printable_name(file.file), file.first if divides_files else None
