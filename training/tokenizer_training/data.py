"""Reads the tokenizer's training clips from episode shards: a pure function from sample number to pixels.

The order is that of pre-training (`data.sampler`), over episodes instead of token rows, so a run resumes from its step number
alone. Every sample reads one episode by its byte offset and decodes only the frames it needs. The price: reads are random.

An episode that can't be read is replaced by another one of its data set, chosen by seed and sample number. So the samples don't
depend on the number of processes or on resumes, and the mixture stays. Each sample lists the episodes it could not use.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.common.errors import BadEpisodeError, ProjectError, ShardError
from pipeline.config.model import TokenizerConfig
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.shards import read_sample
from pipeline.processes.child_processes import follow_parent
from tokenize_offline.clips.decode import decode_frame
from tokenize_offline.clips.sampling import KeyedRandom, draw_augmentation, stride_of
from tokenize_offline.clips.transforms import augment, to_square
from training.data.episode_index import EpisodeRow, EpisodeRows
from training.data.sampler import DatasetSize, SampleOrder

# Episodes tried for one sample. So many in a row are damaged only if nearly all are.
_MAX_TRIES = 64


class Unread(NamedTuple):
    """An episode that can't be used, and the reason."""

    dataset: str
    key: str
    reason: str


class Drawn(NamedTuple):
    """One sample.

    Attributes:
        clip: (segment_length, 3, resolution, resolution) in [0, 1].
        unread: Episodes that were tried before and can't be used.
        failure: Error that kept all tried episodes from being read; the clip is empty then. It is a value because an exception
            that leaves a worker process has the traceback of that process in its message.
    """

    clip: Tensor
    unread: tuple[Unread, ...] = ()
    failure: Exception | None = None


class DrawnBatch(NamedTuple):
    """A batch: clips, episodes that can't be used, number of samples that took another episode, first failure."""

    clips: Tensor
    unread: list[Unread]
    replaced: int
    failure: Exception | None


def collate(samples: Sequence[Drawn]) -> DrawnBatch:
    """Joins samples into a batch."""
    failures = [sample.failure for sample in samples if sample.failure is not None]
    return DrawnBatch(
        clips=torch.stack([sample.clip for sample in samples]) if not failures else torch.empty(0),
        unread=[one for sample in samples for one in sample.unread],
        replaced=sum(bool(sample.unread) for sample in samples),
        failure=failures[0] if failures else None,
    )


class TokenizerClips(Dataset[Drawn]):
    """Map-style dataset from sample number to training clip.

    Clips are augmented if the recipe has augmented views (`clips.views` above 1), and shuffled if it has a goal.

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

    def __getitem__(self, sample: int) -> Drawn:
        """Returns sample number `sample`."""
        try:
            return self._draw(sample)
        except (ProjectError, OSError) as error:
            return Drawn(torch.empty(0), failure=error)

    def _draw(self, sample: int) -> Drawn:
        dataset, number = self._order[sample]
        rows, unread = self._table[dataset], dict[str, Unread]()
        others = KeyedRandom("substitute", self._tokenizer.seed, sample)
        for attempt in range(_MAX_TRIES):
            row = rows[number]
            try:
                return Drawn(self._clip(row, sample), tuple(unread.values()))
            except (BadEpisodeError, ShardError) as error:
                unread[row.shape.key] = Unread(dataset, row.shape.key, str(error))
            number = others.below(str(attempt), len(rows))
        last = next(reversed(unread.values()))
        raise ShardError(
            f"{_MAX_TRIES} episodes of {dataset}, drawn for sample {sample}, can't be used; the last of them is {last.key}: "
            f"{last.reason}. Ingest the data set again, or leave it out"
        )

    def _clip(self, row: EpisodeRow, sample: int) -> Tensor:
        """Returns the clip of a sample from an episode, (segment_length, 3, resolution, resolution).

        Raises:
            BadEpisodeError: A frame is damaged, or the episode differs from its index.
            ShardError: The sample in the shard is damaged.
        """
        generator = sample_generator(self._tokenizer.seed, sample)
        stride = stride_of(self._clips, row.shape)
        chosen = training_frames(row.shape.num_frames, stride, self._tokenizer, generator, shuffled=self._clips.goal)
        episode = read_sample(row.shard, row.offset, row.size)
        if episode.num_frames != row.shape.num_frames:
            raise BadEpisodeError(f"{episode.num_frames} frames where the index says {row.shape.num_frames}")
        pixels = np.stack([decode_frame(episode, index) for index in chosen])
        side = self._tokenizer.resolution
        if self._clips.views == 1:
            return to_square(pixels, side)
        return augment(pixels, side, draw_augmentation(KeyedRandom(self._tokenizer.seed, sample), self._clips, row.shape))


def sample_generator(seed: int, sample: int) -> np.random.Generator:
    """Returns the random generator that chooses the frames of a sample."""
    return np.random.default_rng([seed, sample])


class StepBatches:
    """Batch sampler that starts at any step: yields the sample numbers of this process, step by step.

    Args:
        first: First step.
        last: Step after the last one.
        local_batch: Clips of one process in a step.
        rank: Rank of this process.
        processes: Number of processes.
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


def begin_reading(_: int) -> None:
    """Initializes a worker process, which ends with its parent."""
    follow_parent()


def training_frames(
    num_frames: int, stride: float, config: TokenizerConfig, generator: np.random.Generator, shuffled: bool = False
) -> np.ndarray:
    """Returns the frame numbers of one training clip.

    Args:
        num_frames: Frames of the episode.
        stride: Frames between neighbours of the horizon, at least 1.
        config: Gives `context_length`, `segment_length` and `horizon`.
        generator: Random generator.
        shuffled: Whether the frames come in random order.

    Returns:
        (segment_length,) int64, ascending unless shuffled; an episode shorter than the horizon repeats its last frame.
    """
    span = round((config.horizon - 1) * stride)
    start = int(generator.integers(0, max(num_frames - span, 1)))
    futures = generator.choice(
        np.arange(config.context_length, config.horizon), config.segment_length - config.context_length, replace=False
    )
    steps = np.concatenate([np.arange(config.context_length), np.sort(futures)])
    if shuffled:
        steps = generator.permutation(steps)
    return np.minimum(start + np.rint(steps * stride).astype(np.int64), num_frames - 1)
