"""Training clips for the tokenizer, straight from episode shards: sample number -> pixels, as a pure function.

The order is that of pre-training (`training.order`), over episodes in place of token rows, so a run resumes from its step
number alone. Every sample reads one episode by its byte offset and decodes only the frames it needs; random reads are the
price of an order without state.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pipeline.index import IndexRow, read_episode_at, read_index
from torch import Tensor
from torch.utils.data import Dataset

from pipeline import frames, storage
from pipeline.errors import ShardError
from pipeline.recipe import ClipsConfig, TokenizerConfig
from tokenize_offline.augment import augment, to_square
from tokenize_offline.clips import Draws, EpisodeShape, draw_augmentation, is_held_out, stride_of
from training.order import DatasetSize, SampleOrder
from training.tokenizer_clips import training_frames


@dataclass(frozen=True)
class EpisodeTable:
    """The episodes of several data sets, without their frames.

    Attributes:
        folders: Data set -> its folder of episode shards.
        rows: Data set -> one index row per episode.
    """

    folders: dict[str, str]
    rows: dict[str, list[IndexRow]]

    @classmethod
    def open(cls, shards: Sequence[str], split: str, held_out: float, want_held_out: bool) -> "EpisodeTable":
        """Open the indexes of data sets.

        Args:
            shards: Output folders of ingest, or folders of single data sets.
            split: The split whose episodes are taken.
            held_out: Share of held-out episodes.
            want_held_out: Whether to take these, or all the others.

        Raises:
            ShardError: There is no episode to train on.
        """
        folders: dict[str, str] = {}
        rows: dict[str, list[IndexRow]] = {}
        for folder in (dataset for root in shards for dataset in dataset_folders(root)):
            found = [row for row in read_index(folder) if row.split == split]
            found = [row for row in found if is_held_out(row.dataset, row.key, held_out) == want_held_out]
            if found:
                folders[found[0].dataset] = folder
                rows[found[0].dataset] = found
        if not rows and not want_held_out:
            places = ", ".join(shards)
            raise ShardError(f"no episode of split {split!r} under {places}; name the output folder of ivideogpt-ingest")
        return cls(folders, rows)


def dataset_folders(root: str) -> list[str]:
    """The data set folders under an output folder of ingest, or `root` itself where it is one."""
    folders = [root, *(storage.join(root, name) for name in storage.list_folders(root))]
    return [folder for folder in folders if storage.exists(storage.join(folder, "index.parquet"))]


class TokenizerClips(Dataset[Tensor]):
    """Map-style data set: sample number -> one training clip (segment_length, 3, resolution, resolution) in [0, 1].

    Clips are augmented where the recipe has augmented views (`clips.views` above 1).

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
        shape = EpisodeShape(dataset, row.key, row.num_frames, row.height, row.width, row.rate, row.base_step)
        generator = np.random.default_rng([self._tokenizer.seed, sample])
        chosen = training_frames(row.num_frames, stride_of(self._clips, shape), self._tokenizer, generator)
        episode = read_episode_at(self._table.folders[dataset], row)
        pixels = np.stack([frames.decode(episode.frames[index]) for index in chosen])
        side = self._tokenizer.resolution
        if self._clips.views == 1:
            return to_square(pixels, side)
        return augment(pixels, side, draw_augmentation(Draws(self._tokenizer.seed, sample), self._clips, shape))


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
