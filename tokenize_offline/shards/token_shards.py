"""Reads and writes token shards: Arrow IPC files of tokenized clips, uncompressed so that they can be memory-mapped.

A row is a clip. The schema's metadata holds everything that the ids depend on; shards with different metadata can't be opened
together. The views of a clip position are neighbouring rows, view 0 first.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.common.errors import ShardError
from pipeline.common.manifests import describe_difference
from tokenize_offline.token_layout import FORMAT_VERSION, TokenLayout

_METADATA_KEY = b"ivideogpt"


@dataclass(frozen=True)
class TokenShardInfo:
    """The metadata of one token shard.

    Attributes:
        layout: Layout, the same for all shards that are opened together.
        dataset: Data set of the episodes.
        split: Split of the rows.
        views: Views of each clip position; there are positions x views rows.
        action_dim: Width A of an action; 0 without actions.
        action_meaning: Meaning of the action columns.
        has_reward: Whether rows have rewards.
        episode_shard: File name of the source episode shard.
        episode_shard_sha256: SHA-256 of the source episode shard.
        version: Version of the format.
    """

    layout: TokenLayout
    dataset: str
    split: str
    views: int
    action_dim: int
    action_meaning: str
    has_reward: bool
    episode_shard: str
    episode_shard_sha256: str
    version: int = FORMAT_VERSION


@dataclass(frozen=True)
class TokenRows:
    """N rows of a token shard.

    Attributes:
        ids: (N, L) integers below 65536.
        episode: Episode key of each row.
        start: (N,) index of each clip's first frame in its episode.
        stride: (N,) episode frames between neighbouring clip frames.
        view: (N,) number of the view.
        action: (N, T, A) float32 or None; action[:, i] is the action at the clip's frame i.
        reward: (N, T) float32 or None.
    """

    ids: np.ndarray
    episode: list[str]
    start: np.ndarray
    stride: np.ndarray
    view: np.ndarray
    action: np.ndarray | None = None
    reward: np.ndarray | None = None


def token_schema(info: TokenShardInfo) -> pa.Schema:
    """The Arrow schema of a shard, including its metadata."""
    layout = info.layout
    fields = [
        pa.field("ids", pa.list_(pa.uint16(), layout.sequence_length), nullable=False),
        pa.field("episode", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("stride", pa.float32(), nullable=False),
        pa.field("view", pa.int16(), nullable=False),
    ]
    if info.action_dim:
        fields.append(pa.field("action", pa.list_(pa.float32(), layout.clip_length * info.action_dim), nullable=False))
    if info.has_reward:
        fields.append(pa.field("reward", pa.list_(pa.float32(), layout.clip_length), nullable=False))
    metadata = json.dumps(dataclasses.asdict(info), sort_keys=True)
    return pa.schema(fields, metadata={_METADATA_KEY: metadata.encode()})


def write_token_shard(path: Path, info: TokenShardInfo, rows: TokenRows) -> None:
    """Write a token shard to a local file; use `storage.staged`. The same rows always give the same bytes.

    Raises:
        ValueError: The shapes of the rows disagree with `info`.
    """
    layout = info.layout
    count = len(rows.episode)
    _check_shape("ids", rows.ids, (count, layout.sequence_length))
    if layout.vocabulary > 65536:
        raise ValueError(f"a vocabulary of {layout.vocabulary} does not fit into 16-bit ids")
    episodes = list(dict.fromkeys(rows.episode))
    position = {key: number for number, key in enumerate(episodes)}
    dictionary = pa.DictionaryArray.from_arrays(
        pa.array([position[key] for key in rows.episode], pa.int32()), pa.array(episodes, pa.string())
    )
    columns = [
        _fixed_size_list(rows.ids.astype(np.uint16), layout.sequence_length),
        dictionary,
        pa.array(rows.start, pa.int32()),
        pa.array(rows.stride, pa.float32()),
        pa.array(rows.view, pa.int16()),
    ]
    if info.action_dim:
        _check_shape("action", rows.action, (count, layout.clip_length, info.action_dim))
        columns.append(_fixed_size_list(np.asarray(rows.action, np.float32), layout.clip_length * info.action_dim))
    if info.has_reward:
        _check_shape("reward", rows.reward, (count, layout.clip_length))
        columns.append(_fixed_size_list(np.asarray(rows.reward, np.float32), layout.clip_length))
    table = pa.Table.from_arrays(columns, schema=token_schema(info))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _check_shape(name: str, array: np.ndarray | None, shape: tuple[int, ...]) -> None:
    found = None if array is None else array.shape
    if found != shape:
        raise ValueError(f"{name} has shape {found}, but must have {shape}")


def _fixed_size_list(values: np.ndarray, length: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), length)


def shard_info(schema: pa.Schema, where: str) -> TokenShardInfo:
    """Read the metadata of a shard from its schema.

    Raises:
        ShardError: The metadata is missing or has another version.
    """
    raw: dict[str, Any] | None = None
    try:
        raw = json.loads((schema.metadata or {})[_METADATA_KEY])
        layout = TokenLayout(**raw.pop("layout"))
        info = TokenShardInfo(layout=layout, **raw)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{where} is not a token shard of this project ({error!r})") from error
    if info.version != FORMAT_VERSION:
        raise ShardError(f"{where} has token shard format {info.version}, but this release reads {FORMAT_VERSION}")
    return info


def open_token_shard(path: Path) -> tuple[TokenShardInfo, pa.Table]:
    """Memory-map a local token shard.

    Raises:
        ShardError: The file is missing, truncated, or not a token shard.
    """
    if not path.is_file():
        raise ShardError(f"{path} does not exist")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(
            f"{path} can't be opened as an Arrow file ({error}); delete it and its manifest (.json), and tokenize again"
        ) from error
    return shard_info(table.schema, str(path)), table


def fixed_size_column(table: pa.Table, name: str, width: int) -> Iterator[np.ndarray]:
    """Iterate over the chunks of a fixed-size-list column as (rows, width) arrays, without copying the mapped memory."""
    for chunk in table.column(name).chunks:
        values = chunk.values.to_numpy(zero_copy_only=True)
        yield values[chunk.offset * width : (chunk.offset + len(chunk)) * width].reshape(-1, width)


def require_same_layout(first: TokenShardInfo, first_path: str, other: TokenShardInfo, other_path: str) -> None:
    """Check that two shards have the same layout: tokenizer, clip settings and grids.

    Raises:
        ShardError: They differ; the message names both files and the differing values.
    """
    if first.layout != other.layout:
        difference = describe_difference(dataclasses.asdict(first.layout), dataclasses.asdict(other.layout))
        raise ShardError(f"{first_path} and {other_path} can't be used together: {difference}. Tokenize one of them again.")
