"""The Parquet index of a data set: a row per episode, with where its sample lies, so that one can be read without the rest.

It is made from the records of the shards alone and can be made again at any time; equal records give equal bytes.
"""

import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.episode import Episode
from pipeline.errors import ShardError
from pipeline.naming import parse_shard_name
from pipeline.records import ShardRecord
from pipeline.shards import read_sample

INDEX_NAME = "index.parquet"


@dataclass(frozen=True)
class IndexRow:
    """What the index knows of an episode; see `pipeline.Episode` for the fields both have.

    Attributes:
        shard: File name of the episode's shard.
        offset: First byte of its sample in the shard.
        size: Bytes of its sample.
        split: Split of the shard.
    """

    key: str
    dataset: str
    split: str
    shard: str
    offset: int
    size: int
    num_frames: int
    height: int
    width: int
    rate: float | None
    base_step: float
    camera: str
    language: str
    action_dim: int
    action_meaning: str
    episode_id: str
    source_file: str
    source_record: int


_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), float | None: pa.float64()}
_SCHEMA = pa.schema([(field.name, _TYPES[field.type]) for field in dataclasses.fields(IndexRow)])  # type: ignore[index]


def write_index(folder: str, records: Iterable[ShardRecord]) -> int:
    """Publish the index of a data set; returns the number of episodes.

    Args:
        folder: Of the data set.
        records: Of all its shards.
    """
    rows = []
    for record in sorted(records, key=lambda record: record.shard):
        parsed = parse_shard_name(record.shard)
        if parsed is None:
            raise ShardError(f"{folder} has a record of {record.shard}, which is no shard's name")
        rows += [{**entry, "shard": record.shard, "split": parsed[0]} for entry in record.entries]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer, compression="zstd")
    storage.write_bytes(storage.join(folder, INDEX_NAME), buffer.getvalue())
    return len(rows)


def read_index(folder: str) -> list[IndexRow]:
    """The rows of a data set's index, in the order of its shards.

    Raises:
        ShardError: There is no index, or it is damaged.
    """
    path = storage.join(folder, INDEX_NAME)
    if not storage.exists(path):
        raise ShardError(f"{path} is not there; is {folder} a data set folder that ivideogpt-ingest finished?")
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(path)), schema=_SCHEMA)
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(f"{path} can't be read ({error}); run ivideogpt-ingest again to make it anew") from error
    return [IndexRow(**row) for row in table.to_pylist()]


def read_episode_at(folder: str, row: IndexRow) -> Episode:
    """Read the one episode that a row of `folder`'s index stands for."""
    return read_sample(storage.join(folder, row.shard), row.offset, row.size)


def read_episode(folder: str, key: str) -> Episode:
    """Read one episode by its key.

    Raises:
        ShardError: The index has no such key.
    """
    for row in read_index(folder):
        if row.key == key:
            return read_episode_at(folder, row)
    raise ShardError(f"{folder} has no episode {key}; see the column `key` of its {INDEX_NAME}")
