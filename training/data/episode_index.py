"""Lists the episodes of data sets and where their samples are, from their indexes. No frame is read.

Rows stay in Arrow columns and become objects one at a time: a million episodes take 0.1 GB per process, a tenth of what objects
would take, and every process that reads training data has a copy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.config.recipe import QualityConfig
from pipeline.episodes.frames import shrunk_to
from pipeline.episodes.index import find_datasets, read_index, read_summary
from tokenize_offline.clips.sampling import EpisodeShape, are_held_out
from tokenize_offline.filtering import excluded_episodes

_OF_SHAPE = ("key", "num_frames", "height", "width", "rate", "base_step")
_COLUMNS = (*_OF_SHAPE, "split", "shard", "offset", "size")


@dataclass(frozen=True)
class EpisodeRow:
    """An episode and where its sample is.

    Attributes:
        shape: Determines the clips of the episode.
        shard: Path of its shard.
        offset: First byte of its sample in the shard.
        size: Size of its sample in bytes.
    """

    shape: EpisodeShape
    shard: str
    offset: int
    size: int


class EpisodeRows:
    """Episodes of one data set, in the order of its index.

    Args:
        dataset: Name of the data set.
        folder: Folder of the data set.
        table: Rows of its index.
    """

    def __init__(self, dataset: str, folder: str, table: pa.Table) -> None:
        self._dataset = dataset
        self._folder = folder
        self._columns = {name: table.column(name).combine_chunks() for name in table.column_names}

    @property
    def shrunk(self) -> int | None:
        """Short side to which the frames were shrunk; see `pipeline.episodes.frames.shrunk_to`."""
        short_sides = np.unique(np.minimum(*(self._columns[name].to_numpy() for name in ("height", "width")))).tolist()
        return shrunk_to(read_summary(self._folder)["made_with"].get("frames", {}), short_sides)

    def __len__(self) -> int:
        return len(self._columns["key"])

    def __getitem__(self, number: int) -> EpisodeRow:
        row = {name: column[number].as_py() for name, column in self._columns.items()}
        shape = EpisodeShape(dataset=self._dataset, **{name: row[name] for name in _OF_SHAPE})
        return EpisodeRow(shape, storage.join(self._folder, row["shard"]), row["offset"], row["size"])

    def __iter__(self) -> Iterator[EpisodeRow]:
        return (self[number] for number in range(len(self)))


def open_episode_indexes(
    shards: Sequence[str], split: str, held_out: float, quality: QualityConfig | None = None
) -> tuple[dict[str, EpisodeRows], dict[str, EpisodeRows]]:
    """Opens the indexes of data sets.

    Args:
        shards: Output folders of ingest, or folders of single data sets.
        split: Split whose episodes are taken.
        held_out: Fraction of held-out episodes (`clips.held_out`).
        quality: Quality limits of the recipe; episodes beyond them are left out. None = no limits.

    Returns:
        Training episodes and held-out episodes, by data set; data sets without any are left out.

    Raises:
        ConfigError: There is no data set, or one appears twice.
        ShardError: The split has no episodes, a data set has no index, or its quality was not measured.
    """
    kept: dict[str, EpisodeRows] = {}
    held: dict[str, EpisodeRows] = {}
    folders = find_datasets(shards)
    excluded = excluded_episodes(list(folders.values()), quality or QualityConfig(), held_out)
    for dataset, folder in folders.items():
        found = read_episodes(folder)
        taken = pc.equal(found["split"], split).to_numpy(zero_copy_only=False)
        in_split = taken.copy()
        taken[excluded.filter(pc.equal(excluded["dataset"], dataset))["place"].to_numpy()] = False
        taken = taken[in_split]
        found = found.filter(pa.array(in_split)).drop_columns("split")
        held_out_mask = are_held_out(dataset, found["key"].to_pylist(), held_out)
        for table, mask in ((kept, taken & ~held_out_mask), (held, taken & held_out_mask)):
            if mask.any():
                table[dataset] = EpisodeRows(dataset, folder, found.filter(pa.array(mask)))
    if not kept and not held:
        raise ShardError(f"no episode of split {split!r} under {', '.join(shards)}; name another split or folder")
    return kept, held


def read_episodes(folder: str) -> pa.Table:
    """Reads what `EpisodeRows` needs of all episodes of a data set, and their splits, in the order of its index.

    Raises:
        ShardError: The index is missing or can't be read.
    """
    found = read_index(folder, _COLUMNS)
    return found.set_column(found.column_names.index("shard"), "shard", found["shard"].dictionary_encode())
