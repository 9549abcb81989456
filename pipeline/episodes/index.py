"""The index of a data set: a Parquet file with a row per episode, and a summary; both made of the shards' records alone.

With a row's offset and size one episode is read without the rest. Columns of quality are null in rows of shards that were made
before they were measured. Equal records give equal bytes.
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
# What a record's entry holds of each episode beside its quality; shard and split are the record's own.
ENTRY_COLUMNS = tuple(name for name in _SCHEMA.names if name not in ("split", "shard", *QUALITY_COLUMNS))


def find_datasets(folders: Sequence[str]) -> dict[str, str]:
    """Data set -> its folder, of every data set in some folders, whether its ingest is finished or not.

    Args:
        folders: Output folders of ingest, or folders of single data sets; paths or URLs.

    Raises:
        ConfigError: A folder holds no data set, or one of the same name is in two places.
    """
    found: dict[str, str] = {}
    for folder in folders:
        below = (storage.join(folder, name) for name in storage.list_folders(folder))
        own = folder.rstrip("/")
        there = [own] if episode_shards(own) else [path for path in below if episode_shards(path)]
        if not there:
            raise ConfigError(
                f"{folder}: no episode shards there or one level below; name an output folder of ivideogpt-ingest"
            )
        for path in there:
            name = storage.basename(path)
            if found.setdefault(name, path) != path:
                raise ConfigError(
                    f"data set {name} is in both {found[name]} and {path}; name one of them, or give one another name"
                )
    return found


def episode_shards(folder: str) -> list[str]:
    """File names of the episode shards in a data set's folder, in order."""
    return [name for name in storage.list_files(folder) if name.endswith(".tar") and parse_shard_name(name)]


def read_manifests(folder: str) -> Iterator[ShardManifest]:
    """The records of all episode shards in a data set's folder, in the order of their shards.

    Raises:
        ShardError: A file that is named like a record isn't one.
    """
    for name in listed_manifests(folder):
        try:
            record = read_manifest(storage.join(folder, name))
        except FileNotFoundError:  # its shard is made anew meanwhile
            continue
        yield record


def listed_manifests(folder: str) -> dict[str, ListedFile]:
    """Name -> what its listing says of the record of each episode shard in a data set's folder."""
    listed = storage.listing(folder).items()
    return {
        name: known for name, known in listed if name.endswith(".json") and parse_shard_name(name.removesuffix("json") + "tar")
    }


def write_index(
    folder: str,
    dataset: str,
    records: Iterable[ShardManifest],
    missing: Sequence[str],
    ignored: Mapping[str, int] | None = None,
    filtered: Mapping[str, int] | None = None,
) -> list[ShardManifest]:
    """Write `index.parquet` and `dataset.json` into a data set's folder.

    Args:
        folder: Of the data set.
        dataset: Its name.
        records: Of all its shards, in order; taken one by one, because each holds an entry for every episode.
        missing: Names of shards that could not be made.
        ignored: Reason -> how many of what the plan did not take; what the records count is added.
        filtered: Split -> how many episodes the plan did not want; likewise.

    Returns:
        The records without their entries.
    """
    tables = [_SCHEMA.empty_table()]
    kept = []
    for record in records:
        of_shard = {"shard": record.shard, "split": _split(record)}
        tables.append(pa.Table.from_pylist([{**entry, **of_shard} for entry in record.entries], schema=_SCHEMA))
        kept.append(dataclasses.replace(record, entries=[]))
    table = pa.concat_tables(tables).combine_chunks()
    if (twice := equal_keys(table)) is not None:
        raise ConflictError(
            f"{folder}: {twice}. Remove the shard that doesn't belong, with its record, and run the command again"
        )
    write_table(storage.join(folder, INDEX_FILE), table)
    text = json.dumps(
        _summary(dataset, kept, missing, ignored or {}, filtered or {}), indent=1, sort_keys=True, ensure_ascii=False
    )
    storage.write_bytes(storage.join(folder, SUMMARY_FILE), text.encode() + b"\n")
    return kept


def equal_keys(table: pa.Table) -> str | None:
    """Which episodes of an index have one key, in words, or None: `key`, `shard` and `source_file` of two of them."""
    counts = pc.value_counts(table["key"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(twice):
        return None
    key = twice[0].as_py()
    rows = table.filter(pc.equal(table["key"], key)).slice(0, 2).to_pylist()
    (first, second) = (f"{row['source_file']} in {row['shard']}" for row in rows)
    more = f", and {len(twice) - 1} more keys are there twice" if len(twice) > 1 else ""
    return f"two episodes have the key {key}: {first} and {second}{more}"


def _split(record: ShardManifest) -> str:
    parsed = parse_shard_name(record.shard)
    if parsed is None:
        raise ShardError(f"{record.shard!r} in a record is no name of a shard; delete the record and ingest again")
    return parsed[0]


def _summary(
    dataset: str,
    records: Sequence[ShardManifest],
    missing: Sequence[str],
    ignored: Mapping[str, int],
    filtered: Mapping[str, int],
) -> dict[str, Any]:
    splits: dict[str, collections.Counter[str]] = {}
    actions: collections.Counter[str] = collections.Counter()
    for record in records:
        counts = splits.setdefault(_split(record), collections.Counter())
        counts["shards"] += 1
        counts["episodes"] += record.samples
        counts["frames"] += record.frames
        counts["bytes"] += record.bytes
        counts["left_out"] += len(record.left_out)
        counts["filtered"] += record.statistics["filtered"]
        actions.update(record.statistics["actions"])
    for split, counts in splits.items():
        counts["filtered"] += filtered.get(split, 0)
    common = {key: value for key, value in records[0].inputs.items() if key not in ("sources", "split")} if records else {}
    return {
        "dataset": dataset,
        "made_with": common,
        "splits": {split: dict(counts) for split, counts in splits.items()},
        "actions": dict(actions),
        "passed_over": dict(sorted(count_ignored(records, ignored).items())),
        "missing_shards": list(missing),
    }


def count_ignored(records: Iterable[ShardManifest], planned: Mapping[str, int]) -> collections.Counter[str]:
    """Reason -> how many of what was not taken: while planning, and while the shards were made."""
    total = collections.Counter(planned)
    for record in records:
        total.update(record.statistics.get("passed_over", {}))
    return total


def read_summary(folder: str) -> dict[str, Any]:
    """What `dataset.json` says of a data set.

    Raises:
        ShardError: There is none, or it can't be read.
    """
    path = storage.join(folder, SUMMARY_FILE)
    try:
        return dict(json.loads(storage.read_bytes(path)))
    except (OSError, ValueError, TypeError) as error:
        raise ShardError(f"{path} can't be read ({error}); run ivideogpt-ingest again, which writes it anew") from error


def read_index(folder: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The index of a data set, or some of its columns.

    Raises:
        ShardError: There is none, or it can't be read.
    """
    return read_table(storage.join(folder, INDEX_FILE), columns)


def read_episode(folder: str, key: str) -> Episode:
    """One episode of a data set, found through its index, without reading the rest of its shard.

    Raises:
        ShardError: There is no index, no such episode, or its shard is damaged.
    """
    path = storage.join(folder, INDEX_FILE)
    rows = read_table(path, ["shard", "offset", "size"], [("key", "==", key)]).to_pylist()
    if not rows:
        raise ShardError(f"{path} knows no episode {key!r}")
    row = rows[0]
    if parse_shard_name(row["shard"]) is None:
        raise ShardError(f"{path} names the shard {row['shard']!r}, which can't be one")
    return read_sample(storage.join(folder, row["shard"]), row["offset"], row["size"])
