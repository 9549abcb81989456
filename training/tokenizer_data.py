"""Training clips for the tokenizer, straight from episode shards: sample number -> pixels, as a pure function.

The order is that of pre-training (`training.order`), over episodes in place of token rows, so a run resumes from its step
number alone. Every sample reads one episode by its byte offset and decodes only the frames it needs; random reads are the
price of an order without state.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from pipeline import frames, storage
from pipeline.errors import ShardError
from pipeline.index import read_index
from pipeline.network_recipe import TokenizerConfig
from pipeline.recipe import ClipsConfig, QualityConfig
from pipeline.shards import read_sample
from tokenize_offline.augment import augment, to_square
from tokenize_offline.clips import Draws, EpisodeShape, draw_augmentation, is_held_out, stride_of
from tokenize_offline.selection import select
from training.order import DatasetSize, SampleOrder
from training.tokenizer_clips import training_frames

_COLUMNS = ("key", "split", "shard", "offset", "size", "num_frames", "height", "width", "rate", "base_step")


@dataclass(frozen=True)
class EpisodeRow:
    """An episode and where its sample lies.

    Attributes:
        shape: What its clips follow from.
        shard: Path of its shard.
        offset: First byte of its sample.
        size: Bytes of its sample.
    """

    shape: EpisodeShape
    shard: str
    offset: int
    size: int


@dataclass(frozen=True)
class EpisodeTable:
    """The episodes of several data sets, without their frames.

    Attributes:
        rows: Data set -> one row per episode.
    """

    rows: dict[str, list[EpisodeRow]]

    @classmethod
    def open(
        cls, shards: Sequence[str], split: str, held_out: float, want_held_out: bool, quality: QualityConfig | None = None
    ) -> "EpisodeTable":
        """Open the indexes of data sets.

        Args:
            shards: Output folders of ingest, or folders of single data sets.
            split: The split whose episodes are taken.
            held_out: Share of held-out episodes.
            want_held_out: Whether to take these, or all the others.
            quality: Limits of the recipe; episodes beyond them are not taken. None takes all.

        Raises:
            ShardError: There is no episode to train on, or quality was not measured.
        """
        rows: dict[str, list[EpisodeRow]] = {}
        folders = [dataset for root in shards for dataset in dataset_folders(root)]
        excluded = {(each.dataset, each.key) for each in select(folders, quality, held_out)} if quality is not None else set()
        for folder in folders:
            dataset = storage.basename(folder)
            found = [
                _row(folder, dataset, entry) for entry in read_index(folder, _COLUMNS).to_pylist() if entry["split"] == split
            ]
            found = [row for row in found if is_held_out(dataset, row.shape.key, held_out) == want_held_out]
            found = [row for row in found if (dataset, row.shape.key) not in excluded]
            if found:
                rows[dataset] = found
        if not rows and not want_held_out:
            places = ", ".join(shards)
            raise ShardError(f"no episode of split {split!r} under {places}; name the output folder of ivideogpt-ingest")
        return cls(rows)


def _row(folder: str, dataset: str, entry: dict[str, Any]) -> EpisodeRow:
    names = ("key", "num_frames", "height", "width", "rate", "base_step")
    shape = EpisodeShape(dataset=dataset, **{name: entry[name] for name in names})
    return EpisodeRow(shape, storage.join(folder, entry["shard"]), entry["offset"], entry["size"])


def dataset_folders(root: str) -> list[str]:
    """The data set folders under an output folder of ingest, or `root` itself where it is one."""
    folders = [root, *(storage.join(root, name) for name in storage.list_folders(root))]
    return [folder for folder in folders if storage.exists(storage.join(folder, "index.parquet"))]


class TokenizerClips(Dataset[Tensor]):
    """Map-style data set: sample number -> one training clip (segment_length, 3, resolution, resolution) in [0, 1].

    Clips are augmented where the recipe has augmented views (`clips.views` above 1), and shuffled where it has a goal.

    Args:
        table: Episodes to draw from.
        tokenizer: Resolution and clip lengths.
        clips: Stride and augmentation.
        weights: Data set -> weight; None weights by number of episodes.
    """

    def __init__(
        self, table: EpisodeTable, tokenizer: TokenizerConfig, clips: ClipsConfig, weights: Mapping[str, float] | None
    ) -> None:
        self._table = table
        self._tokenizer = tokenizer
        self._clips = dataclasses.replace(clips, length=tokenizer.horizon)
        sizes = {name: DatasetSize(len(rows)) for name, rows in sorted(table.rows.items())}
        self._order = SampleOrder(sizes, weights, tokenizer.seed)

    def __getitem__(self, sample: int) -> Tensor:
        """The clip of sample number `sample`."""
        dataset, number = self._order[sample]
        row = self._table.rows[dataset][number]
        generator = np.random.default_rng([self._tokenizer.seed, sample])
        stride = stride_of(self._clips, row.shape)
        chosen = training_frames(row.shape.num_frames, stride, self._tokenizer, generator, shuffled=self._clips.goal)
        episode = read_sample(row.shard, row.offset, row.size)
        pixels = np.stack([frames.decode(episode.frames[index]) for index in chosen])
        side = self._tokenizer.resolution
        if self._clips.views == 1:
            return to_square(pixels, side)
        return augment(pixels, side, draw_augmentation(Draws(self._tokenizer.seed, sample), self._clips, row.shape))


class StepBatches:
    """Sample numbers of this process's clips, step by step: a batch sampler that starts anywhere.

    Args:
        first: First step.
        last: Step before which it ends.
        local_batch: Clips of one process.
        rank: Of this process.
        processes: In all.
    """

    def __init__(self, first: int, last: int, local_batch: int, rank: int, processes: int) -> None:
        self._steps = range(first, last)
        self._local_batch = local_batch
        self._rank = rank
        self._processes = processes

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            start = (step * self._processes + self._rank) * self._local_batch
            yield list(range(start, start + self._local_batch))
