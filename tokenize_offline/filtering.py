"""Which episodes a recipe's quality limits leave out, decided from the indexes of all data sets at once; no shard is read.

Of duplicates the first one stays, in an order in which evaluation comes before training: splits that are not trained on, then
held-out episodes, then the others, each by data set and key. So what is evaluated is never trained on under another name.
Near duplicates are sought among episodes of equal length (`near_duplicates`); shards hold what they held, so another limit
needs no ingest. Everything stays in Arrow's columns, and of these only what a limit asks for is read.
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

# Column -> limit of the recipe -> name of the reason.
_LIMITS = (
    ("static_share", "max_static", "static"),
    ("uniform_share", "max_uniform", "uniform"),
    ("repeated_share", "max_repeated", "repeated"),
    ("swap_score", "max_swap_score", "swapped"),
)
# A row's number is its reason; 0 stays.
_REASONS = ("", *(reason for *_, reason in _LIMITS), "duplicate", "near duplicate")
_EXCLUDED = pa.schema(
    [
        ("dataset", pa.dictionary(pa.int32(), pa.string())),
        # File name of its episode shard, and its number in it, from 0.
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int32()),
        # Its row in the data set's index.
        ("place", pa.int64()),
        ("key", pa.string()),
        # `static`, `uniform`, `repeated`, `swapped`, `duplicate` or `near duplicate`.
        ("reason", pa.dictionary(pa.int32(), pa.string())),
    ]
)


def dataset_weights(data: DataConfig) -> Mapping[str, float] | None:
    """The data sets that a recipe's mixture or weights name, with their weights; None where it takes all."""
    return mixture(data.mixture) if data.mixture else data.weights or None


def excluded_episodes(folders: Sequence[str], limits: QualityConfig, held_out: float) -> pa.Table:
    """The episodes that a recipe leaves out.

    Args:
        folders: Of all data sets, with their indexes.
        limits: The recipe's section.
        held_out: Share of held-out episodes (`clips.held_out`).

    Returns:
        A row an episode: `dataset`, `shard` (file name), `row` (in that shard, from 0), `place` (row of the data set's index),
        `key` and `reason`.

    Raises:
        ShardError: An index is missing, or its episodes were ingested before quality was measured.
    """
    if not limits.active:
        return _EXCLUDED.empty_table()
    # Folders of one order, so that the tables' order doesn't depend on that in which they were named.
    return exclude([_measured(folder, limits, held_out) for folder in sorted(folders, key=storage.basename)], limits)


def exclude(measured: Sequence[pa.Table], limits: QualityConfig) -> pa.Table:
    """The episodes that are beyond a limit, or that repeat one that stays; see `select`.

    Args:
        measured: A table for every data set, by name, with the columns of `select` but for `reason`; `rank` (0 where a split
            isn't trained on, 1 where the episode is held out, 2 where it is for training); `num_frames`; and what the limits
            are about, columns of `pipeline.episodes.quality.Quality`.
        limits: The recipe's section.
    """
    numbered = [
        table.append_column("reason", pa.array(_beyond(table, limits))).append_column(
            "number", pa.array(np.full(len(table), number, np.int32))
        )
        for number, table in enumerate(measured)
    ]
    episodes = pa.concat_tables(numbered)
    reason = episodes["reason"].to_numpy().copy()
    if limits.duplicates != "keep":
        order = pc.sort_indices(episodes, sort_keys=[(name, "ascending") for name in ("rank", "number", "key")]).to_numpy()
        staying = order[reason[order] == 0]
        # Codes are given in order of appearance.
        codes = pc.take(episodes["content_hash"], pa.array(staying)).combine_chunks().dictionary_encode().indices.to_numpy()
        first = np.diff(np.maximum.accumulate(codes), prepend=-1) > 0
        reason[staying[~first]] = _REASONS.index("duplicate")
        if limits.duplicates == "near":
            staying = staying[first]
            near = _near_duplicates(pc.take(episodes.select(["num_frames", "perceptual_hash"]), pa.array(staying)), limits)
            reason[staying[near]] = _REASONS.index("near duplicate")
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
            f"{path} knows no quality of {old} of its {len(index)} episodes, the first in {example}: they were "
            "ingested before it was measured. Ingest the data set again with --overwrite, or take the limits of `quality` out "
            "of the recipe"
        )
    dataset = storage.basename(folder)
    shards = index["shard"].combine_chunks().dictionary_encode()
    made = {
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
        made["rank"] = pa.array(rank)
    if limits.duplicates == "near":
        made["perceptual_hash"] = _from_hex(index["perceptual_hash"], path)
    return pa.table(made)


def _rows_in(shards: np.ndarray) -> np.ndarray:
    """The number of every row among those of its shard, (N,) int32; shards (N,) are numbers."""
    order = np.argsort(shards, kind="stable")
    _, starts, counts = np.unique(shards[order], return_index=True, return_counts=True)
    rows = np.empty(len(shards), np.int32)
    rows[order] = np.arange(len(shards)) - np.repeat(starts, counts)
    return rows


def _from_hex(texts: pa.ChunkedArray, path: str) -> pa.ChunkedArray:
    """Hex digits as bytes, in half the memory."""
    widths = pc.unique(pc.binary_length(texts)).to_pylist() or [0]
    if len(widths) > 1 or widths[0] % 2:
        raise ShardError(f"{path} has perceptual hashes of {widths} digits; run ivideogpt-ingest again, which writes it anew")
    value = np.zeros(256, np.uint8)
    value[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
    made = []
    for chunk in filter(len, texts.chunks):
        # The bytes of a string array, from its first string to its last.
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        digits = value[np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]].reshape(-1, 2)
        data = pa.py_buffer(digits[:, 0] << 4 | digits[:, 1])
        made.append(pa.FixedSizeBinaryArray.from_buffers(pa.binary(widths[0] // 2), len(chunk), [None, data]))
    return pa.chunked_array(made, pa.binary(widths[0] // 2))


def _beyond(episodes: pa.Table, limits: QualityConfig) -> np.ndarray:
    """The number of the first limit that each episode is beyond, 0 where there is none, (N,) int8."""
    reason = np.zeros(len(episodes), np.int8)
    for number, (column, limit, _) in enumerate(_LIMITS, 1):
        most = getattr(limits, limit)
        if most is not None:
            # An episode of one frame has no pairs, and nothing moves in it.
            values = pc.fill_null(episodes[column], 1.0).to_numpy()
            reason[(values > most) & (reason == 0)] = number
    return reason


def _near_duplicates(episodes: pa.Table, limits: QualityConfig) -> np.ndarray:
    """Whether each episode is close to an earlier one of its length that stays, (N,) bool."""
    lengths = episodes["num_frames"].to_numpy()
    hashes = episodes["perceptual_hash"].combine_chunks()
    order = np.argsort(lengths, kind="stable")
    _, starts = np.unique(lengths[order], return_index=True)
    near = np.zeros(len(lengths), bool)
    for places in np.split(order, starts[1:]):
        group = hashes.take(pa.array(places))
        width = group.type.byte_width
        values = np.frombuffer(group.buffers()[1], np.uint8)[group.offset * width :][: len(group) * width]
        near[places] = ~first_of_near_duplicates(values.reshape(len(group), width), limits.near_bits)
    return near


def count_reasons(excluded: pa.Table) -> dict[str, int]:
    """Reason -> episodes, in the order of their names."""
    return dict(sorted(collections.Counter(excluded["reason"].to_pylist()).items()))
