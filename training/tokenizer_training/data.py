"""Training clips for the tokenizer, straight from episode shards: sample number -> pixels, as a pure function.

The order is that of pre-training (`data.sampler`), over episodes in place of token rows, so a run resumes from its step
number alone. Every sample reads one episode by its byte offset and decodes only the frames it needs; random reads are the
price of an order without state.

An episode that can't be read is replaced by others of its data set, which follow from the seed and the sample's number: so all
numbers of processes, and a resumed run, see the same, and no mixture shifts. What was met is told with the sample.
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

# Episodes tried for one sample: more than this in a row are damaged only where nearly all are.
_MOST_TRIED = 64


class Unread(NamedTuple):
    """An episode that can't be used, and why."""

    dataset: str
    key: str
    reason: str


class Drawn(NamedTuple):
    """One sample.

    Attributes:
        clip: (segment_length, 3, resolution, resolution) in [0, 1].
        unread: The episodes that it should have come from.
        failure: What kept it from being read, in place of a clip that means anything. An exception that leaves a reader process
            comes with that process's traceback in its message.
    """

    clip: Tensor
    unread: tuple[Unread, ...] = ()
    failure: Exception | None = None


class DrawnBatch(NamedTuple):
    """Samples of a batch: their clips, all episodes that could not be used, the samples that took others, the first failure."""

    clips: Tensor
    unread: list[Unread]
    replaced: int
    failure: Exception | None


def collate(samples: Sequence[Drawn]) -> DrawnBatch:
    """Samples as a batch."""
    failures = [sample.failure for sample in samples if sample.failure is not None]
    return DrawnBatch(
        clips=torch.stack([sample.clip for sample in samples]) if not failures else torch.empty(0),
        unread=[one for sample in samples for one in sample.unread],
        replaced=sum(bool(sample.unread) for sample in samples),
        failure=failures[0] if failures else None,
    )


class TokenizerClips(Dataset[Drawn]):
    """Map-style data set: sample number -> one training clip.

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

    def __getitem__(self, sample: int) -> Drawn:
        """Sample number `sample`."""
        try:
            return self._draw(sample)
        except (ProjectError, OSError) as error:
            return Drawn(torch.empty(0), failure=error)

    def _draw(self, sample: int) -> Drawn:
        dataset, number = self._order[sample]
        rows, unread = self._table[dataset], dict[str, Unread]()
        others = KeyedRandom("substitute", self._tokenizer.seed, sample)
        for attempt in range(_MOST_TRIED):
            row = rows[number]
            try:
                return Drawn(self._clip(row, sample), tuple(unread.values()))
            except (BadEpisodeError, ShardError) as error:
                unread[row.shape.key] = Unread(dataset, row.shape.key, str(error))
            number = others.below(str(attempt), len(rows))
        last = next(reversed(unread.values()))
        raise ShardError(
            f"{_MOST_TRIED} episodes of {dataset}, drawn for sample {sample}, can't be used; the last of them is {last.key}: "
            f"{last.reason}. Ingest the data set again, or leave it out"
        )

    def _clip(self, row: EpisodeRow, sample: int) -> Tensor:
        """(segment_length, 3, resolution, resolution): the clip of a sample out of an episode.

        Raises:
            BadEpisodeError: A frame is damaged, or the episode isn't what its index says.
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


def begin_reading(_: int) -> None:
    """What a process that reads clips does first."""
    follow_parent()


def training_frames(
    num_frames: int, stride: float, config: TokenizerConfig, generator: np.random.Generator, shuffled: bool = False
) -> np.ndarray:
    """Frame numbers of one training clip.

    Args:
        num_frames: Length of the episode.
        stride: Frames between neighbours of the horizon, at least 1.
        config: Its `context_length`, `segment_length` and `horizon` are used.
        generator: Source of the random choices.
        shuffled: Whether the frames come in random order.

    Returns:
        (segment_length,) int64, not decreasing unless shuffled; an episode shorter than the horizon repeats its last frame.
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
