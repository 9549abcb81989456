"""Records of TFRecord files as `tf.train.Example`: parsed once, values taken by the feature's name."""

from typing import Any

from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from pipeline.errors import BadEpisodeError

Columns = Any  # the map of a parsed tf.train.Example: name -> feature


def parse_example(record: bytes) -> Columns:
    """The features of a record by name.

    Raises:
        BadEpisodeError: It is no `tf.train.Example`.
    """
    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise BadEpisodeError(f"the record is no tf.train.Example: {error}") from error


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
