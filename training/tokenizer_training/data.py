"""Training clips for the tokenizer, straight from episode shards: sample number -> pixels, as a pure function.

The order is that of pre-training (`training.order`), over episodes in place of token rows, so a run resumes from its step
number alone. Every sample reads one episode by its byte offset and decodes only the frames it needs; random reads are the
price of an order without state.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from pipeline import frames
from pipeline.network_recipe import TokenizerConfig
from pipeline.recipe import ClipsConfig
from pipeline.shards import read_sample
from tokenize_offline.augment import augment, to_square
from tokenize_offline.clips import Draws, draw_augmentation, stride_of
from training.episode_table import EpisodeRows
from training.order import DatasetSize, SampleOrder
from training.tokenizer_training.clips import training_frames


class TokenizerClips(Dataset[Tensor]):
    """Map-style data set: sample number -> one training clip (segment_length, 3, resolution, resolution) in [0, 1].

    Clips are augmented where the recipe has augmented views (`clips.views` above 1), and shuffled where it has a goal.

    Args:
        table: Episodes to draw from, by data set.
        tokenizer: Resolution and clip lengths.
        clips: Stride and augmentation.
        weights: Data set -> weight; None weights by number of episodes.
    """

    def __init__(
        self,
        table: Mapping[str, EpisodeRows],
        tokenizer: TokenizerConfig,
        clips: ClipsConfig,
        weights: Mapping[str, float] | None,
    ) -> None:
        self._table = table
        self._tokenizer = tokenizer
        self._clips = dataclasses.replace(clips, length=tokenizer.horizon)
        sizes = {name: DatasetSize(len(rows)) for name, rows in sorted(table.items())}
        self._order = SampleOrder(sizes, weights, tokenizer.seed)

    def __getitem__(self, sample: int) -> Tensor:
        """The clip of sample number `sample`."""
        dataset, number = self._order[sample]
        row = self._table[dataset][number]
        generator = sample_generator(self._tokenizer.seed, sample)
        stride = stride_of(self._clips, row.shape)
        chosen = training_frames(row.shape.num_frames, stride, self._tokenizer, generator, shuffled=self._clips.goal)
        episode = read_sample(row.shard, row.offset, row.size)
        pixels = np.stack([frames.decode(episode.frames[index]) for index in chosen])
        side = self._tokenizer.resolution
        if self._clips.views == 1:
            return to_square(pixels, side)
        return augment(pixels, side, draw_augmentation(Draws(self._tokenizer.seed, sample), self._clips, row.shape))


def sample_generator(seed: int, sample: int) -> np.random.Generator:
    """Where the choice of frames of a sample comes from."""
    return np.random.default_rng([seed, sample])


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
