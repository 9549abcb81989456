"""Records of TFRecord files as `tf.train.Example`: parsed once, values taken by the feature's name.

Every record that there should be comes out, whole or as the reason why it can't be had: one that is damaged, those behind the
end of a file that was cut short, all those of a file that is empty or missing.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError, MissingEpisodeError, SourceError
from pipeline.sources.base import BadEpisode, SourceShard
from pipeline.sources.tfrecord.reader import DamagedRecord, PackedFileError, scan_records

Columns = Any  # the map of a parsed tf.train.Example: name -> feature


class Record(NamedTuple):
    """What a file has in one place.

    Attributes:
        position: From 0.
        columns: The record, or why it can't be had.
        numbered: Whether `position` is surely its own: no stretch before it was lost that may have held several records.
    """

    position: int
    columns: Columns | BadEpisode
    numbered: bool


def read_examples(path: str, shard: SourceShard) -> Iterator[Record]:
    """The records of a TFRecord file, in order, and those that `shard.records` promises besides; up to `shard.take`.

    Raises:
        SourceError: The file is there but can't be opened, or it holds more records than promised.
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
                # Parsing copies: the bytes are let go here, and the columns are held by whoever takes them alone.
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
    promised = shard.records
    if promised is not None and numbered and count > promised:
        raise SourceError(f"{path} has {count} records, where {promised} are stated. Fetch it and what states that again")
    if lost is None:
        ended = f"the file ends after {count} of {promised} records" if count else "the file is empty"
        lost = DamagedEpisodeError(f"{ended}. Fetch it again")
    # A file that nobody says anything of should have held something.
    wanted = max(count, 1) if promised is None else promised
    for position in range(count, wanted if shard.take is None else min(wanted, shard.take)):
        yield Record(position, BadEpisode.of(lost), numbered)


def _parsed(record: bytes) -> Columns | BadEpisode:
    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        return BadEpisode(f"the record is no tf.train.Example: {error}")


def feature_values(columns: Columns, name: str, kind: str | None = None) -> Any:
    """All values of a feature, of whatever kind the record has, or of `kind` (`bytes_list`, ..) alone.

    Raises:
        BadEpisodeError: The record doesn't have it.
    """
    # Looking up a key that isn't there would create it.
    found = columns[name].WhichOneof("kind") if name in columns else None
    if found is None or (kind is not None and found != kind):
        raise BadEpisodeError(f"feature {name} is {'missing' if found is None else f'a {found}, not a {kind}'}")
    return getattr(columns[name], found).value
