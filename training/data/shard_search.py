"""Where the token shards of a run lie: finished ones alone, found in one or several folders, in an order of their own."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.common.manifests import manifest_path, read_manifest
from pipeline.episodes.naming import parse_shard_name

log = logging.getLogger(__name__)


def folder_list(dirs: str | Path | Sequence[str | Path]) -> list[str]:
    """One or several folders or URLs as a list of their names."""
    return [str(folder) for folder in ([dirs] if isinstance(dirs, str | Path) else dirs)]


def find_shards(folder: str, splits: set[str]) -> Iterator[str]:
    """Paths of the finished shards of `splits` under one folder."""
    for dataset in storage.list_folders(folder):
        names = storage.list_files(storage.join(folder, dataset))
        records = {name for name in names if name.endswith(".json")}
        shards = [
            name for name in names if name.endswith(".arrow") and (parsed := parse_shard_name(name)) and parsed[0] in splits
        ]
        wanted = {manifest_path(name): name for name in shards}
        for name in records:
            parsed = parse_shard_name(name.removesuffix(".json") + ".arrow")
            if parsed and parsed[0] in splits and name not in wanted:
                raise ShardError(f"{storage.join(folder, dataset, name)} is there but its token shard is not; tokenize again")
        unfinished = [shard for record, shard in wanted.items() if record not in records]
        if unfinished:
            log.warning("%s/%s: %d shards without a record are not finished and left out", folder, dataset, len(unfinished))
        yield from (storage.join(folder, dataset, shard) for shard in shards if shard not in unfinished)


def no_shards_message(folders: Sequence[str], splits: Sequence[str]) -> str:
    """Why there are no shards of `splits`, in words."""
    below = [storage.join(folder, dataset) for folder in folders for dataset in storage.list_folders(folder)]
    names = (parse_shard_name(name) for folder in below for name in storage.list_files(folder))
    there = {parsed[0] for parsed in names if parsed}
    hint = f"there are shards of {', '.join(sorted(there))}" if there else "give the folder that ivideogpt-tokenize wrote to"
    return f"no finished token shards with clips of split {', '.join(splits)} under {', '.join(folders)}: {hint}"


def _name(path: str) -> str:
    """`{data set}/{shard}` of a shard's path."""
    return "/".join(path.rsplit("/", 2)[1:])


def reordered(paths: Sequence[str]) -> list[str]:
    """The data sets whose shards, in this order, are not in the order of their names."""
    names: dict[str, list[str]] = {}
    for path in paths:
        names.setdefault(_name(path).partition("/")[0], []).append(_name(path))
    return [dataset for dataset, members in names.items() if members != sorted(members)]


def sort_shards(paths: Sequence[str]) -> list[str]:
    """Shards by data set and name, so that neither a folder nor the order of folders decides the order of samples.

    Raises:
        ShardError: Two shards of a data set have the same name.
    """
    ordered = sorted(paths, key=_name)
    for one, other in itertools.pairwise(ordered):
        if _name(one) == _name(other):
            raise ShardError(f"{one} and {other} {_relation(one, other)}: leave one folder out")
    return ordered


def _relation(one: str, other: str) -> str:
    digests = [read_manifest(manifest_path(path)).sha256 for path in (one, other)]
    if digests[0] == digests[1]:
        return "are the same shard of the same data set"
    return f"have the same name but not the same content (SHA-256 {digests[0][:12]}.., {digests[1][:12]}..)"
