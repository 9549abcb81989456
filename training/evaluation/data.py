"""The clips of an evaluation: one a episode, of the data sets' episode shards, read by offset so that a process opens its own.

Episodes too short for a clip are left out and counted; a clip that ended in repeated frames would flatter every row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.episode import Episode
from pipeline.errors import ShardError
from pipeline.frames import require_detail
from pipeline.index import read_records, read_summary
from pipeline.recipe import ClipsConfig
from pipeline.shards import read_sample
from tokenize_offline.clips import EpisodeShape, frame_indices, stride_of
from training.episode_table import EpisodeRow, open_tables


@dataclass(frozen=True)
class TestSet:
    """The clips of one data set.

    Attributes:
        dataset: Its name.
        rows: Episodes whose clips are evaluated, in order.
        too_short: Episodes left out.
    """

    dataset: str
    rows: list[EpisodeRow]
    too_short: int

    def describe(self, split: str, held_out: bool) -> dict[str, Any]:
        """What an evaluation card says of it: where it is from, and a hash over the records of its shards."""
        folder = self.rows[0].shard.rsplit("/", 1)[0]
        used = {row.shard for row in self.rows}
        records = [record for record in read_records(folder) if storage.join(folder, record.shard) in used]
        digest = hashlib.sha256("\n".join(f"{record.shard} {record.sha256}" for record in records).encode())
        return {
            "folder": storage.basename(folder),
            "split": split,
            "held_out_only": held_out,
            "clips": len(self.rows),
            "left_out_too_short": self.too_short,
            "first_episode": self.rows[0].shape.key,
            "last_episode": self.rows[-1].shape.key,
            "shards_sha256": digest.hexdigest(),
            "made_with": read_summary(folder)["made_with"],
        }


def open_test_sets(
    shards: Sequence[str], split: str, held_out: bool, clips: ClipsConfig, start: int, limit: int | None, side: int
) -> list[TestSet]:
    """The first `limit` episodes of every data set that are long enough.

    Args:
        shards: Output folders of ingest, or folders of single data sets.
        split: Whose episodes are taken.
        held_out: Only the episodes that `clips.held_out` keeps from training.
        clips: With length filled in.
        start: First frame of every clip.
        limit: Episodes of a data set at most; None takes all.
        side: Of the square frames that the model sees, in pixels.

    Raises:
        ConfigError: Frames were shrunk below that when they were ingested.
        ShardError: There is no episode to evaluate.
    """
    table = open_tables(shards, split, clips.held_out)[1] if held_out else open_tables(shards, split, 0.0)[0]
    sets = []
    for dataset, rows in sorted(table.items()):
        require_detail(rows.shrunk, side, dataset)
        enough = [row for row in rows if _last_frame(clips, row.shape, start) < row.shape.num_frames]
        if enough:
            sets.append(TestSet(dataset, enough[:limit], len(rows) - len(enough)))
    if not sets:
        which = "held-out episode" if held_out else "episode"
        raise ShardError(
            f"no {which} of split {split!r} under {', '.join(shards)} is long enough for clips of {clips.length} frames: "
            "choose another --split, a shorter --steps, or a smaller --clips.stride"
        )
    return sets


def _last_frame(clips: ClipsConfig, shape: EpisodeShape, start: int) -> int:
    """Where a clip would end if the episode went on for ever."""
    return max(frame_indices(clips, start, stride_of(clips, shape), 1 << 62)[int(clips.goal) :])


def read_row(row: EpisodeRow) -> Episode:
    """The episode of a row."""
    return read_sample(row.shard, row.offset, row.size)
