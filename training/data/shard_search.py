"""Finds the finished token shards of a run in one or several folders, and sorts them."""

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
    """Returns one or several folders or URLs as a list of names."""
    return [str(folder) for folder in ([dirs] if isinstance(dirs, str | Path) else dirs)]


def find_shards(folder: str, splits: set[str]) -> Iterator[str]:
    """Yields the paths of the finished shards of `splits` under one folder."""
    for dataset in storage.list_folders(folder):
        names = storage.list_files(storage.join(folder, dataset))
        manifests = {name for name in names if name.endswith(".json")}
        shards = [
            name for name in names if name.endswith(".arrow") and (parsed := parse_shard_name(name)) and parsed[0] in splits
        ]
        wanted = {manifest_path(name): name for name in shards}
        for name in manifests:
            parsed = parse_shard_name(name.removesuffix(".json") + ".arrow")
            if parsed and parsed[0] in splits and name not in wanted:
                raise ShardError(f"{storage.join(folder, dataset, name)} exists but its token shard does not: tokenize again")
        unfinished = [shard for manifest, shard in wanted.items() if manifest not in manifests]
        if unfinished:
            log.warning("%s/%s: skipping %d unfinished shards, which have no manifest", folder, dataset, len(unfinished))
        yield from (storage.join(folder, dataset, shard) for shard in shards if shard not in unfinished)


def no_shards_message(folders: Sequence[str], splits: Sequence[str]) -> str:
    """Returns an error message that explains why there are no shards of `splits`."""
    below = [storage.join(folder, dataset) for folder in folders for dataset in storage.list_folders(folder)]
    names = (parse_shard_name(name) for folder in below for name in storage.list_files(folder))
    found = {parsed[0] for parsed in names if parsed}
    hint = f"found shards of {', '.join(sorted(found))}" if found else "give the output folder of ivideogpt-tokenize"
    return f"no finished token shards with clips of split {', '.join(splits)} under {', '.join(folders)}: {hint}"


def _name(path: str) -> str:
    """Returns `{data set}/{shard}` from a shard's path."""
    return "/".join(path.rsplit("/", 2)[1:])


def reordered(paths: Sequence[str]) -> list[str]:
    """Returns the data sets whose shards, in this order, are not sorted by name."""
    names: dict[str, list[str]] = {}
    for path in paths:
        names.setdefault(_name(path).partition("/")[0], []).append(_name(path))
    return [dataset for dataset, members in names.items() if members != sorted(members)]


def sort_shards(paths: Sequence[str]) -> list[str]:
    """Sorts shards by data set and name, so that folders and their order don't change the order of samples.

    Raises:
        ShardError: Two shards of a data set have the same name.
    """
    ordered = sorted(paths, key=_name)
    for one, other in itertools.pairwise(ordered):
        if _name(one) == _name(other):
            raise ShardError(f"{one} and {other} {_relation(one, other)}: remove one folder from --tokens")
    return ordered


def _relation(one: str, other: str) -> str:
    digests = [read_manifest(manifest_path(path)).sha256 for path in (one, other)]
    if digests[0] == digests[1]:
        return "are the same shard of the same data set"
    return f"have the same name but different content (SHA-256 {digests[0][:12]}.., {digests[1][:12]}..)"
