"""The skipped episodes of a data set: a Parquet file with a row per episode, its place in the source, and the reason.

Made from the shards' manifests alone and rewritten by every run: equal manifests give equal bytes, and a resumed run leaves the
same file as an uninterrupted one. A data set without skipped episodes has a file without rows, so a missing file never looks
clean.
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


def write_skipped(folder: str, dataset: str, manifests: Iterable[ShardManifest]) -> None:
    """Publishes `left_out.parquet` in a data set's folder.

    Args:
        folder: Folder of the data set.
        dataset: Name of the data set.
        manifests: Manifests of all shards, in order.

    Raises:
        ShardError: A manifest has an invalid shard name.
    """
    rows = []
    for manifest in manifests:
        parsed = parse_shard_name(manifest.shard)
        if parsed is None:
            raise ShardError(f"{manifest.shard!r} in a manifest is not a shard name; delete the manifest and ingest again")
        for episode in manifest.left_out:
            rows.append({"dataset": dataset, "split": parsed[0], "shard": manifest.shard, **vars(episode)})
    write_table(storage.join(folder, SKIPPED_FILE), pa.Table.from_pylist(rows, schema=_SCHEMA))


def read_skipped(folder: str) -> pa.Table:
    """Returns the skipped episodes of a data set, in the order of its shards.

    Columns: `dataset`, `split`, `shard` (that would have held the episode), `source_file` and `source_record` (its place in the
    source, from 0), `key` (that it would have had), `kind` (`missing`, `damaged` or `unusable`, see
    `pipeline.common.errors.BadEpisodeError`), `reason` and `episodes` (estimated number of lost episodes).

    Args:
        folder: Folder of the data set.

    Raises:
        ShardError: The file does not exist or can't be read.
    """
    path = storage.join(folder, SKIPPED_FILE)
    table = read_table(path)
    if lacking := sorted({*_SCHEMA.names} - {*table.column_names, _WEIGHT}):
        raise ShardError(
            f"{path} can't be read: it has no column {lacking[0]!r}; run ivideogpt-ingest again, which writes it again"
        )
    if _WEIGHT not in table.column_names:  # written before this column existed
        table = table.append_column(_WEIGHT, pa.array([1.0] * len(table), pa.float64()))
    return table.select(_SCHEMA.names)
