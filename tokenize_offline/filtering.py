"""Finds the episodes that a recipe's quality limits exclude, from the indexes of all data sets at once. It reads no shard.

Only the first of several duplicates is kept, and evaluation comes before training: first splits that are not trained on, then
held-out episodes, then all others, each sorted by data set and key. So no evaluated episode is also trained on under another
name. Near duplicates are searched among episodes of equal length (`near_duplicates`). Shards are not changed, so new limits
need no new ingest. Data stay in Arrow columns, and only the columns that the limits need are read.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.config.catalog import mixture
from pipeline.config.recipe import DataConfig, QualityConfig
from pipeline.episodes.index import INDEX_FILE, read_index
from pipeline.episodes.naming import TRAINING_SPLIT
from tokenize_offline.clips.sampling import are_held_out
from tokenize_offline.near_duplicates import first_of_near_duplicates

# (column, limit in the recipe, reason).
_LIMITS = (
    ("static_share", "max_static", "static"),
    ("uniform_share", "max_uniform", "uniform"),
    ("repeated_share", "max_repeated", "repeated"),
    ("swap_score", "max_swap_score", "swapped"),
)
# An episode's reason is an index into this tuple; episodes with 0 are kept.
_REASONS = ("", *(reason for *_, reason in _LIMITS), "duplicate", "near duplicate")
_EXCLUDED = pa.schema(
    [
        ("dataset", pa.dictionary(pa.int32(), pa.string())),
        # File name of the episode shard, and index of the episode in it.
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int32()),
        # Row in the data set's index.
        ("place", pa.int64()),
        ("key", pa.string()),
        # `static`, `uniform`, `repeated`, `swapped`, `duplicate` or `near duplicate`.
        ("reason", pa.dictionary(pa.int32(), pa.string())),
    ]
)


def dataset_weights(data: DataConfig) -> Mapping[str, float] | None:
    """Data set -> weight, from the recipe's mixture or weights; None if the recipe uses all data sets."""
    return mixture(data.mixture) if data.mixture else data.weights or None


def excluded_episodes(folders: Sequence[str], limits: QualityConfig, held_out: float) -> pa.Table:
    """The episodes that a recipe excludes.

    Args:
        folders: Folders of all data sets, with their indexes.
        limits: The recipe's section `quality`.
        held_out: Fraction of held-out episodes (`clips.held_out`).

    Returns:
        One row per episode: `dataset`, `shard` (file name), `row` (index in that shard), `place` (row in the data set's
        index), `key` and `reason`.

    Raises:
        ShardError: An index is missing or has no quality measurements.
    """
    if not limits.active:
        return _EXCLUDED.empty_table()
    # Sorted, so that the result does not depend on the order of the folders.
    return exclude([_measured(folder, limits, held_out) for folder in sorted(folders, key=storage.basename)], limits)


def exclude(measured: Sequence[pa.Table], limits: QualityConfig) -> pa.Table:
    """The episodes that exceed a limit or duplicate an episode that is kept; returns the table of `excluded_episodes`.

    Args:
        measured: A table per data set, sorted by name. It has the columns of `excluded_episodes` except `reason`; `rank` (0 in
            splits that are not trained on, 1 for held-out episodes, 2 for training); `num_frames`; and the columns of
            `pipeline.episodes.quality.Quality` that the limits need.
        limits: The recipe's section `quality`.
    """
    numbered = [
        table.append_column("reason", pa.array(_exceeded_limit(table, limits))).append_column(
            "number", pa.array(np.full(len(table), number, np.int32))
        )
        for number, table in enumerate(measured)
    ]
    episodes = pa.concat_tables(numbered)
    reason = episodes["reason"].to_numpy().copy()
    if limits.duplicates != "keep":
        order = pc.sort_indices(episodes, sort_keys=[(name, "ascending") for name in ("rank", "number", "key")]).to_numpy()
        kept = order[reason[order] == 0]
        # Dictionary codes count up in order of first occurrence.
        codes = pc.take(episodes["content_hash"], pa.array(kept)).combine_chunks().dictionary_encode().indices.to_numpy()
        first = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
        reason[kept[~first]] = _REASONS.index("duplicate")
        if limits.duplicates == "near":
            kept = kept[first]
            near = _near_duplicates(pc.take(episodes.select(["num_frames", "perceptual_hash"]), pa.array(kept)), limits)
            reason[kept[near]] = _REASONS.index("near duplicate")
    found = episodes.select(_EXCLUDED.names).filter(pa.array(reason > 0))
    names = pa.DictionaryArray.from_arrays(pa.array(reason[reason > 0], pa.int32()), pa.array(_REASONS))
    return found.set_column(_EXCLUDED.names.index("reason"), "reason", names).cast(_EXCLUDED)


def _measured(folder: str, limits: QualityConfig, held_out: float) -> pa.Table:
    path = storage.join(folder, INDEX_FILE)
    columns = [column for column, limit, _ in _LIMITS if getattr(limits, limit) is not None]
    columns += ["content_hash"] if limits.duplicates != "keep" else []
    columns += ["num_frames", "perceptual_hash"] if limits.duplicates == "near" else []
    index = read_index(folder, ["key", "split", "shard", "measured_frames", *columns])
    if old := index["measured_frames"].null_count:
        example = index.filter(pc.is_null(index["measured_frames"]))["shard"][0]
        raise ShardError(
            f"{path} has no quality measurements for {old} of its {len(index)} episodes, the first in {example}: ingest the "
            "data set again with --overwrite, or remove the limits of `quality` from the recipe"
        )
    dataset = storage.basename(folder)
    shards = index["shard"].combine_chunks().dictionary_encode()
    columns_by_name = {
        "dataset": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(index), np.int32)), pa.array([dataset])),
        "shard": shards,
        "row": pa.array(_rows_in(shards.indices.to_numpy())),
        "place": pa.array(np.arange(len(index))),
        "key": index["key"],
        **{column: index[column] for column in columns},
    }
    if limits.duplicates != "keep":
        training = pc.equal(index["split"], TRAINING_SPLIT).to_numpy(zero_copy_only=False)
        rank = np.where(training, 2, 0).astype(np.int8)
        held = are_held_out(dataset, index["key"].filter(pa.array(training)).to_pylist(), held_out)
        rank[np.flatnonzero(training)[held]] = 1
        columns_by_name["rank"] = pa.array(rank)
    if limits.duplicates == "near":
        columns_by_name["perceptual_hash"] = _from_hex(index["perceptual_hash"], path)
    return pa.table(columns_by_name)


def _rows_in(shards: np.ndarray) -> np.ndarray:
    """Index of each row within its shard, (N,) int32, from the shard number of each row (N,)."""
    order = np.argsort(shards, kind="stable")
    _, starts, counts = np.unique(shards[order], return_index=True, return_counts=True)
    rows = np.empty(len(shards), np.int32)
    rows[order] = np.arange(len(shards)) - np.repeat(starts, counts)
    return rows


def _from_hex(texts: pa.ChunkedArray, path: str) -> pa.ChunkedArray:
    """Decode hex digits to bytes."""
    widths = pc.unique(pc.binary_length(texts)).to_pylist() or [0]
    if len(widths) > 1 or widths[0] % 2:
        raise ShardError(f"{path} has perceptual hashes of {widths} digits; run ivideogpt-ingest again to rewrite it")
    value = np.zeros(256, np.uint8)
    value[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
    decoded = []
    for chunk in filter(len, texts.chunks):
        # The character buffer of the chunk, from its first string to its last.
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        digits = value[np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]].reshape(-1, 2)
        data = pa.py_buffer(digits[:, 0] << 4 | digits[:, 1])
        decoded.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(widths[0] // 2), len(chunk), [None, data]))
    return pa.chunked_array(decoded, pa.binary(widths[0] // 2))


def _exceeded_limit(episodes: pa.Table, limits: QualityConfig) -> np.ndarray:
    """For each episode, the number of the first limit it exceeds, from 1; 0 if there is none. (N,) int8."""
    reason = np.zeros(len(episodes), np.int8)
    for number, (column, limit, _) in enumerate(_LIMITS, 1):
        most = getattr(limits, limit)
        if most is not None:
            # An episode with one frame has no measurement, and nothing moves in it.
            values = pc.fill_null(episodes[column], 1.0).to_numpy()
            reason[(values > most) & (reason == 0)] = number
    return reason


def _near_duplicates(episodes: pa.Table, limits: QualityConfig) -> np.ndarray:
    """Whether each episode is close to an earlier kept episode of the same length, (N,) bool."""
    lengths = episodes["num_frames"].to_numpy()
    hashes = episodes["perceptual_hash"].combine_chunks()
    order = np.argsort(lengths, kind="stable")
    _, starts = np.unique(lengths[order], return_index=True)
    near = np.zeros(len(lengths), bool)
    for rows in np.split(order, starts[1:]):
        group = hashes.take(pa.array(rows))
        width = group.type.byte_width
        values = np.frombuffer(group.buffers()[1], np.uint8)[group.offset * width :][: len(group) * width]
        near[rows] = ~first_of_near_duplicates(values.reshape(len(group), width), limits.near_bits)
    return near


def count_reasons(excluded: pa.Table) -> dict[str, int]:
    """Reason -> number of episodes, sorted by reason."""
    return dict(sorted(collections.Counter(excluded["reason"].to_pylist()).items()))
