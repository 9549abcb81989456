"""Reads the records of TFRecord files as `tf.train.Example`: parses each record once and returns features by name.

Every expected record is yielded, either its features or the reason why it can't be read: a damaged record, records after the
end of a truncated file, and all records of an empty or missing file.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError, MissingEpisodeError, SourceError
from pipeline.sources.base import BadEpisode, SourceShard
from pipeline.sources.tfrecord.reader import DamagedRecord, PackedFileError, scan_records

Columns = Any  # the feature map of a parsed tf.train.Example (name -> feature), which has no public type


class Record(NamedTuple):
    """One record of a file.

    Attributes:
        position: Position in the file, from 0.
        columns: The features of the record, or the reason why it can't be read.
        numbered: Whether `position` is certain; it isn't after a damaged part that may have held several records.
    """

    position: int
    columns: Columns | BadEpisode
    numbered: bool


def read_examples(path: str, shard: SourceShard) -> Iterator[Record]:
    """Yield the records of a TFRecord file in order, and the missing ones of `shard.records`; up to `shard.take`.

    Raises:
        SourceError: The file exists but can't be opened, or it holds more records than stated.
    """
    count, numbered = 0, True
    lost: BadEpisodeError | None = None
    try:
        for found in scan_records(path):
            if count == shard.take:
                return
            if isinstance(found, DamagedRecord):
                numbered = numbered and found.alone
                yield Record(count, BadEpisode.of(DamagedEpisodeError(f"{found.reason}. Fetch the file again")), numbered)
            else:
                # Parsing copies the record: free its bytes here, and leave the only reference to the features to the caller.
                parsed = [_parsed(found)]
                del found
                yield Record(count, parsed.pop(), numbered)
            count += 1
    except PackedFileError as error:
        lost = BadEpisodeError(str(error))
    except FileNotFoundError:
        lost = MissingEpisodeError("the file is missing. Fetch it")
    except OSError as error:
        raise SourceError(f"{path} can't be opened: {error}") from error
    stated = shard.records
    if stated is not None and numbered and count > stated:
        raise SourceError(f"{path} has {count} records, where {stated} are stated. Fetch it and what states that again")
    if lost is None:
        ended = f"the file ends after {count} of {stated} records" if count else "the file is empty"
        lost = DamagedEpisodeError(f"{ended}. Fetch it again")
    # If no number is stated, the file should have held at least one record.
    expected = max(count, 1) if stated is None else stated
    for position in range(count, expected if shard.take is None else min(expected, shard.take)):
        yield Record(position, BadEpisode.of(lost), numbered)


def _parsed(record: bytes) -> Columns | BadEpisode:
    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        return BadEpisode(f"the record is no tf.train.Example: {error}")


def feature_values(columns: Columns, name: str, kind: str | None = None) -> Any:
    """Return all values of a feature.

    Args:
        columns: Features of the record.
        name: Name of the feature.
        kind: The list that must hold the values, such as `bytes_list`; None accepts any.

    Raises:
        BadEpisodeError: The record doesn't have this feature.
    """
    # Looking up a missing key would create it.
    found = columns[name].WhichOneof("kind") if name in columns else None
    if found is None or (kind is not None and found != kind):
        raise BadEpisodeError(f"feature {name} is {'missing' if found is None else f'a {found}, not a {kind}'}")
    return getattr(columns[name], found).value
