"""The index of a data set: a Parquet file with a row per episode, and a summary; both made from the shards' manifests alone.

A row's offset and size locate one episode, so it can be read alone. Quality columns are null in rows of older shards. Equal
manifests give equal bytes.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ConflictError, ShardError
from pipeline.common.listings import ListedFile
from pipeline.common.manifests import ShardManifest, read_manifest
from pipeline.common.parquet import read_table, write_table
from pipeline.episodes.episode import Episode
from pipeline.episodes.naming import parse_shard_name
from pipeline.episodes.quality import COLUMNS as QUALITY_COLUMNS
from pipeline.episodes.shards import read_sample

INDEX_FILE = "index.parquet"
SUMMARY_FILE = "dataset.json"

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("num_frames", pa.int32()),
        ("rate", pa.float64()),
        ("base_step", pa.float64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("camera", pa.string()),
        ("action_dim", pa.int32()),
        ("language", pa.string()),
        ("episode_id", pa.string()),
        ("source_file", pa.string()),
        ("source_record", pa.int64()),
        # See `pipeline.episodes.quality.Quality`.
        ("measured_frames", pa.int32()),
        ("static_share", pa.float64()),
        ("repeated_share", pa.float64()),
        ("uniform_share", pa.float64()),
        ("swap_score", pa.float64()),
        ("content_hash", pa.string()),
        ("perceptual_hash", pa.string()),
    ]
)
# Columns that a manifest's entry has for each episode, besides quality; the manifest itself has shard and split.
ENTRY_COLUMNS = tuple(name for name in _SCHEMA.names if name not in ("split", "shard", *QUALITY_COLUMNS))


def find_datasets(folders: Sequence[str]) -> dict[str, str]:
    """Returns data set -> folder for every data set in some folders, whether its ingest has finished or not.

    Args:
        folders: Output folders of ingest, or folders of single data sets; paths or URLs.

    Raises:
        ConfigError: A folder has no data set, or two folders have a data set of the same name.
    """
    datasets: dict[str, str] = {}
    for folder in folders:
        below = (storage.join(folder, name) for name in storage.list_folders(folder))
        own = folder.rstrip("/")
        paths = [own] if episode_shards(own) else [path for path in below if episode_shards(path)]
        if not paths:
            raise ConfigError(
                f"{folder}: no episode shards there or one level below; pass an output folder of ivideogpt-ingest"
            )
        for path in paths:
            name = storage.basename(path)
            if datasets.setdefault(name, path) != path:
                raise ConfigError(f"data set {name} is in both {datasets[name]} and {path}; pass one of them, or rename one")
    return datasets


def episode_shards(folder: str) -> list[str]:
    """Returns the file names of the episode shards in a data set's folder, in order."""
    return [name for name in storage.list_files(folder) if name.endswith(".tar") and parse_shard_name(name)]


def read_manifests(folder: str) -> Iterator[ShardManifest]:
    """Yields the manifests of all episode shards in a data set's folder, in the order of shards.

    Raises:
        ShardError: A file with the name of a manifest is not a manifest.
    """
    for name in listed_manifests(folder):
        try:
            manifest = read_manifest(storage.join(folder, name))
        except FileNotFoundError:  # another process is making the shard again
            continue
        yield manifest


def listed_manifests(folder: str) -> dict[str, ListedFile]:
    """Returns name -> listing of the manifest of each episode shard in a data set's folder."""
    listed = storage.listing(folder).items()
    return {
        name: known for name, known in listed if name.endswith(".json") and parse_shard_name(name.removesuffix("json") + "tar")
    }


def write_index(
    folder: str,
    dataset: str,
    manifests: Iterable[ShardManifest],
    missing: Sequence[str],
    ignored: Mapping[str, int] | None = None,
    filtered: Mapping[str, int] | None = None,
) -> list[ShardManifest]:
    """Writes `index.parquet` and `dataset.json` into a data set's folder.

    Args:
        folder: Folder of the data set.
        dataset: Name of the data set.
        manifests: Manifests of all shards, in order; read one by one, since each holds an entry per episode.
        missing: Names of shards that could not be made.
        ignored: Reason -> number of parts of the source that the plan ignored; the manifests' counts are added.
        filtered: Split -> number of episodes that the plan filtered out; the manifests' counts are added.

    Returns:
        The manifests without their entries.
    """
    tables = [_SCHEMA.empty_table()]
    kept = []
    for manifest in manifests:
        of_shard = {"shard": manifest.shard, "split": _split(manifest)}
        tables.append(pa.Table.from_pylist([{**entry, **of_shard} for entry in manifest.entries], schema=_SCHEMA))
        kept.append(dataclasses.replace(manifest, entries=[]))
    table = pa.concat_tables(tables).combine_chunks()
    if (duplicates := equal_keys(table)) is not None:
        raise ConflictError(f"{folder}: {duplicates}. Remove the wrong shard and its manifest, and run the command again")
    write_table(storage.join(folder, INDEX_FILE), table)
    text = json.dumps(
        _summary(dataset, kept, missing, ignored or {}, filtered or {}), indent=1, sort_keys=True, ensure_ascii=False
    )
    storage.write_bytes(storage.join(folder, SUMMARY_FILE), text.encode() + b"\n")
    return kept


def equal_keys(table: pa.Table) -> str | None:
    """Describes two episodes of an index with the same key (`key`, `shard`, `source_file`); None if all keys differ."""
    counts = pc.value_counts(table["key"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(twice):
        return None
    key = twice[0].as_py()
    rows = table.filter(pc.equal(table["key"], key)).slice(0, 2).to_pylist()
    (first, second) = (f"{row['source_file']} in {row['shard']}" for row in rows)
    more = f", and {len(twice) - 1} more keys appear twice" if len(twice) > 1 else ""
    return f"two episodes have the key {key}: {first} and {second}{more}"


def _split(manifest: ShardManifest) -> str:
    parsed = parse_shard_name(manifest.shard)
    if parsed is None:
        raise ShardError(f"{manifest.shard!r} in a manifest is not a shard name; delete the manifest and ingest again")
    return parsed[0]


def _summary(
    dataset: str,
    manifests: Sequence[ShardManifest],
    missing: Sequence[str],
    ignored: Mapping[str, int],
    filtered: Mapping[str, int],
) -> dict[str, Any]:
    splits: dict[str, collections.Counter[str]] = {}
    actions: collections.Counter[str] = collections.Counter()
    for manifest in manifests:
        counts = splits.setdefault(_split(manifest), collections.Counter())
        counts["shards"] += 1
        counts["episodes"] += manifest.samples
        counts["frames"] += manifest.frames
        counts["bytes"] += manifest.bytes
        counts["left_out"] += len(manifest.left_out)
        counts["filtered"] += manifest.statistics["filtered"]
        actions.update(manifest.statistics["actions"])
    for split, counts in splits.items():
        counts["filtered"] += filtered.get(split, 0)
    common = {key: value for key, value in manifests[0].inputs.items() if key not in ("sources", "split")} if manifests else {}
    return {
        "dataset": dataset,
        "made_with": common,
        "splits": {split: dict(counts) for split, counts in splits.items()},
        "actions": dict(actions),
        "passed_over": dict(sorted(count_ignored(manifests, ignored).items())),
        "missing_shards": list(missing),
    }


def count_ignored(manifests: Iterable[ShardManifest], planned: Mapping[str, int]) -> collections.Counter[str]:
    """Returns reason -> number of ignored parts of the source, from the plan and from the manifests."""
    total = collections.Counter(planned)
    for manifest in manifests:
        total.update(manifest.statistics.get("passed_over", {}))
    return total


def read_summary(folder: str) -> dict[str, Any]:
    """Returns the content of `dataset.json`.

    Raises:
        ShardError: The file does not exist or can't be read.
    """
    path = storage.join(folder, SUMMARY_FILE)
    try:
        return dict(json.loads(storage.read_bytes(path)))
    except (OSError, ValueError, TypeError) as error:
        raise ShardError(f"{path} can't be read ({error}); run ivideogpt-ingest again, which writes it again") from error


def read_index(folder: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Returns the index of a data set, or some of its columns.

    Raises:
        ShardError: The index does not exist or can't be read.
    """
    return read_table(storage.join(folder, INDEX_FILE), columns)


def read_episode(folder: str, key: str) -> Episode:
    """Returns one episode of a data set, found by its index, without reading the rest of its shard.

    Raises:
        ShardError: The index or the episode does not exist, or the shard is damaged.
    """
    path = storage.join(folder, INDEX_FILE)
    rows = read_table(path, ["shard", "offset", "size"], [("key", "==", key)]).to_pylist()
    if not rows:
        raise ShardError(f"{path} has no episode {key!r}")
    row = rows[0]
    if parse_shard_name(row["shard"]) is None:
        raise ShardError(f"{path} has the invalid shard name {row['shard']!r}; run ivideogpt-ingest again")
    return read_sample(storage.join(folder, row["shard"]), row["offset"], row["size"])
