"""The ledger of a data set: a Parquet file with a row per episode that was left out, where it lies and why.

Made of the shards' records alone, as the index is, and written anew by every run: equal records give equal bytes, and a run
that was killed and went on leaves the same file as one that was not. A sound data set has a ledger without rows, so that a
missing file never passes for a clean one.
"""

from collections.abc import Iterable

import pyarrow as pa

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.common.manifests import ShardManifest
from pipeline.common.parquet import read_table, write_table
from pipeline.episodes.naming import parse_shard_name

SKIPPED_FILE = "left_out.parquet"
_WEIGHT = "episodes"

_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("source_file", pa.string()),
        ("source_record", pa.int64()),
        ("key", pa.string()),
        ("kind", pa.string()),
        ("reason", pa.string()),
        (_WEIGHT, pa.float64()),
    ]
)


def write_skipped(folder: str, dataset: str, records: Iterable[ShardManifest]) -> None:
    """Publish `left_out.parquet` in a data set's folder.

    Args:
        folder: Of the data set.
        dataset: Its name.
        records: Of all its shards, in order.

    Raises:
        ShardError: A record names a shard that can't be one.
    """
    rows = []
    for record in records:
        parsed = parse_shard_name(record.shard)
        if parsed is None:
            raise ShardError(f"{record.shard!r} in a record is no name of a shard; delete the record and ingest again")
        for item in record.left_out:
            rows.append({"dataset": dataset, "split": parsed[0], "shard": record.shard, **vars(item)})
    write_table(storage.join(folder, SKIPPED_FILE), pa.Table.from_pylist(rows, schema=_SCHEMA))


def read_skipped(folder: str) -> pa.Table:
    """The episodes that were left out of a data set, in the order of its shards.

    Columns: `dataset`, `split`, `shard` (that would have held the episode), `source_file` and `source_record` (its place in
    the source, from 0), `key` (that it would have had), `kind` (`missing`, `damaged` or `unusable`, see
    `pipeline.common.errors.BadEpisodeError`), `reason` in words and `episodes` (how many it would have been).

    Args:
        folder: Of the data set, where its index lies too.

    Raises:
        ShardError: There is none, or it can't be read.
    """
    path = storage.join(folder, SKIPPED_FILE)
    table = read_table(path)
    if lacking := sorted({*_SCHEMA.names} - {*table.column_names, _WEIGHT}):
        raise ShardError(
            f"{path} can't be read as what it should be: it has no column {lacking[0]!r}; run ivideogpt-ingest again, which "
            "writes it anew"
        )
    if _WEIGHT not in table.column_names:  # before episodes were weighed
        table = table.append_column(_WEIGHT, pa.array([1.0] * len(table), pa.float64()))
    return table.select(_SCHEMA.names)
