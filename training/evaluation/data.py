"""Selects the clips of an evaluation: one per episode, read by offset from the data sets' episode shards.

It leaves out episodes that the model was trained on, unless requested, and episodes too short for a clip: repeating their last
frame would improve every score. It counts what is left out, with the reason.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import pyarrow as pa

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ShardError
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import require_detail
from pipeline.episodes.index import find_datasets, read_manifests, read_summary
from pipeline.episodes.shards import read_sample
from tokenize_offline.clips.sampling import stride_of
from training.data.episode_index import EpisodeRow, EpisodeRows, read_episodes
from training.model.files.trained_on import TrainedOn
from training.prediction.clip_fit import frames_needed, what_fits
from training.prediction.time_step import fit_time_step

_NAMED_SETS = 5  # maximum number of data sets named in one message


class DataEntry(TypedDict):
    """The card's entry on one data set; pairs are the lowest and the highest value."""

    folder: str
    clips: int
    splits: dict[str, dict[str, int]]
    left_out: dict[str, int]
    first_episode: str
    last_episode: str
    stride: list[float]
    seconds_per_frame: list[float] | None
    time_step: list[str]
    shards_sha256: str
    made_with: object


@dataclass(frozen=True)
class Wanted:
    """Which episodes to evaluate, and how to cut their clips.

    Attributes:
        split: Split to evaluate; None means all splits.
        held_out: Evaluate only episodes that the model was not trained on.
        limit: Maximum number of episodes per data set; None means no limit.
        clips: Clips section with `length` set.
        start: First frame of each clip.
        context: Number of context frames.
        side: Height and width of the model's frames, in pixels.
        stride_given: Whether the user or a protocol set the stride.
        free: Whether the user may choose start, steps and stride; a protocol sets them.
    """

    split: str | None
    held_out: bool
    limit: int | None
    clips: ClipsConfig
    start: int
    context: int
    side: int
    stride_given: bool = False
    free: bool = True


@dataclass(frozen=True)
class TestClip:
    """The episode of a clip, and how to cut the clip."""

    row: EpisodeRow
    clips: ClipsConfig

    @property
    def stride(self) -> float:
        """Distance of neighbouring frames, in frames."""
        return stride_of(self.clips, self.row.shape)

    def read(self) -> Episode:
        """Reads the episode."""
        return read_sample(self.row.shard, self.row.offset, self.row.size)


@dataclass
class SplitCount:
    """Episodes of one split: all, evaluated, and evaluated although the model was trained on them."""

    episodes: int = 0
    evaluated: int = 0
    trained_on: int = 0


@dataclass
class TestSet:
    """The clips of one data set.

    Attributes:
        dataset: Name of the data set.
        folder: Folder of its shards.
        clips: Clips to evaluate, in order: first those of splits without training, then held-out episodes.
        splits: Counts by split.
        left_out: Number of episodes left out, by reason: `not_held_out`, `too_short`, `beyond_episodes`.
        time_steps: Text that says how a stride was chosen -> whether it is doubtful.
        short: Clips that do not fit into the longest and the shortest of the episodes that are too short.
    """

    dataset: str
    folder: str
    clips: list[TestClip] = field(default_factory=list)
    splits: dict[str, SplitCount] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=lambda: {"not_held_out": 0, "too_short": 0, "beyond_episodes": 0})
    time_steps: dict[str, bool] = field(default_factory=dict)
    short: list[TestClip] = field(default_factory=list)

    def describe(self) -> DataEntry:
        """Returns the card's entry on the data set, with a hash over the manifests of its shards."""
        used = {clip.row.shard for clip in self.clips}
        manifests = [each for each in read_manifests(self.folder) if storage.join(self.folder, each.shard) in used]
        digest = hashlib.sha256("\n".join(f"{each.shard} {each.sha256}" for each in manifests).encode())
        strides = [(clip.stride, clip.row.shape.rate) for clip in self.clips]
        seconds = [stride / rate for stride, rate in strides if rate is not None]
        return {
            "folder": storage.basename(self.folder),
            "clips": len(self.clips),
            "splits": {name: vars(count) for name, count in sorted(self.splits.items())},
            "left_out": self.left_out,
            "first_episode": self.clips[0].row.shape.key,
            "last_episode": self.clips[-1].row.shape.key,
            "stride": [min(stride for stride, _ in strides), max(stride for stride, _ in strides)],
            "seconds_per_frame": [min(seconds), max(seconds)] if seconds else None,
            "time_step": list(self.time_steps),
            "shards_sha256": digest.hexdigest(),
            "made_with": read_summary(self.folder)["made_with"],
        }


@dataclass(frozen=True)
class TestData:
    """All clips of an evaluation.

    Attributes:
        sets: Data sets with at least one clip.
        left_out: Data set without a clip -> the reason.
    """

    sets: list[TestSet]
    left_out: dict[str, str]

    @property
    def clips(self) -> list[TestClip]:
        """The clips of all data sets, in order."""
        return [clip for test_set in self.sets for clip in test_set.clips]

    @property
    def trained_on(self) -> int:
        """Number of clips from episodes that the model was trained on."""
        return sum(count.trained_on for test_set in self.sets for count in test_set.splits.values())


def open_test_data(shards: Sequence[str], wanted: Wanted, trained: TrainedOn) -> TestData:
    """Selects the episodes of all data sets that are long enough and, if requested, new to the model.

    Args:
        shards: Output folders of ingest, or folders of single data sets.
        wanted: Which episodes to evaluate.
        trained: What the model was trained on. If it does not record the held-out fraction, `clips.held_out` is used.

    Raises:
        ConfigError: No data set has the split, the held-out fraction is larger than in training, or frames are too small.
        ShardError: There is no episode to evaluate; the message says why and what fits.
    """
    share = wanted.clips.held_out
    if wanted.held_out and trained.held_out is not None and share > trained.held_out:
        raise ConfigError(
            f"clips.held_out is {share:g}, but training held out a fraction of {trained.held_out:g}: the model has seen the "
            "others. Leave out clips.held_out, or score them with --held_out false"
        )
    tables = {name: (folder, read_episodes(folder)) for name, folder in sorted(find_datasets(shards).items())}
    splits = sorted({split for _, table in tables.values() for split in table["split"].unique().to_pylist()})
    if wanted.split is not None and wanted.split not in splits:
        raise ConfigError(
            f"--split {wanted.split}: no data set has that split; use one of: {', '.join(splits)}; or leave out --split for all"
        )
    found = [_open_set(name, folder, table, wanted, trained) for name, (folder, table) in tables.items()]
    sets = [test_set for test_set in found if test_set.clips]
    left_out = {each.dataset: _why_empty(each, wanted, trained) for each in found if not each.clips}
    if not sets:
        named = [f"{name}: {reason}" for name, reason in left_out.items()]
        more = f"; and {len(named) - _NAMED_SETS} more data sets" if len(named) > _NAMED_SETS else ""
        raise ShardError(f"nothing to evaluate. {'; '.join(named[:_NAMED_SETS])}{more}: {_suggestion(found, wanted)}")
    return TestData(sets, left_out)


def _open_set(dataset: str, folder: str, table: pa.Table, wanted: Wanted, trained: TrainedOn) -> TestSet:
    test_set = TestSet(dataset, folder)
    # With a limit on episodes, test splits come before episodes held out of a training split.
    order = np.argsort(np.array([split in trained.splits for split in table["split"].to_pylist()], bool), kind="stable")
    table = table.take(pa.array(order))
    # Held-out episodes depend on the name at ingest, not on the name of the folder now.
    own = read_summary(folder).get("dataset", dataset)
    splits, rows = table["split"].to_pylist(), EpisodeRows(own, folder, table)
    if len(rows):
        require_detail(rows.shrunk, wanted.side, dataset)
    share = wanted.clips.held_out if trained.held_out is None else trained.held_out
    for number, split in enumerate(splits):
        if wanted.split not in (None, split):
            continue
        count = test_set.splits.setdefault(split, SplitCount())
        count.episodes += 1
        row = rows[number]
        if wanted.held_out and trained.saw(own, row.shape.key, split, wanted.clips.held_out):
            test_set.left_out["not_held_out"] += 1
        elif (clip := _clip_of(row, wanted, trained, test_set)) is not None:
            if wanted.limit is not None and len(test_set.clips) >= wanted.limit:
                test_set.left_out["beyond_episodes"] += 1
                continue
            test_set.clips.append(clip)
            count.evaluated += 1
            count.trained_on += trained.saw(own, row.shape.key, split, share)
    return test_set


def _clip_of(row: EpisodeRow, wanted: Wanted, trained: TrainedOn, test_set: TestSet) -> TestClip | None:
    """Returns the clip of an episode; counts an episode that is too short and returns None."""
    step = fit_time_step(row.shape, wanted.clips, trained.seconds_per_frame, ingested=True, given=wanted.stride_given)
    test_set.time_steps[step.reason] = step.doubtful
    clip = TestClip(row, step.clips)
    if frames_needed(clip.clips, wanted.start, clip.stride) <= row.shape.num_frames:
        return clip
    test_set.left_out["too_short"] += 1
    short = sorted([*test_set.short, clip], key=lambda each: -each.row.shape.num_frames)
    test_set.short = [short[0], short[-1]]
    return None


def _why_empty(test_set: TestSet, wanted: Wanted, trained: TrainedOn) -> str:
    """Returns why no episode of a data set is evaluated."""
    episodes = sum(count.episodes for count in test_set.splits.values())
    if not episodes:
        return "it has no episode" if wanted.split is None else f"it has no episode of split {wanted.split}"
    names = ", ".join(sorted(test_set.splits))
    if not test_set.left_out["too_short"]:
        share = wanted.clips.held_out if trained.held_out is None else trained.held_out
        return f"the model was trained on all of its {episodes} episodes ({names}; clips.held_out {share:g})"
    longest, shortest = (clip.row.shape.num_frames for clip in test_set.short)
    frames = f"{shortest} to {longest}" if shortest < longest else f"{longest}"
    stride = test_set.short[0].stride
    needed = frames_needed(test_set.short[0].clips, wanted.start, stride)
    new = f" that the model was not trained on ({names})" if test_set.left_out["not_held_out"] else ""
    begun = f" from frame {wanted.start}" if wanted.start else ""
    return (
        f"its {test_set.left_out['too_short']} episodes{new} have {frames} frames, but a clip of {wanted.clips.length} at a "
        f"stride of {stride:g} needs {needed}{begun}"
    )


def _suggestion(sets: Sequence[TestSet], wanted: Wanted) -> str:
    """Returns options that leave something to evaluate, as text."""
    short = [test_set.short[0] for test_set in sets if test_set.short]
    if not short:
        return "use data sets with a test split, or score training episodes with --held_out false"
    longest = max(short, key=lambda clip: clip.row.shape.num_frames)
    return what_fits(longest.clips, wanted.start, longest.row.shape, wanted.context, wanted.free)


def require_enough(sets: Sequence[TestSet], with_fvd: bool) -> None:
    """Checks that there are enough clips for the metrics.

    Raises:
        ConfigError: FVD is requested, but a data set has a single clip.
    """
    for test_set in sets:
        if with_fvd and len(test_set.clips) < 2:
            raise ConfigError(
                f"fvd needs at least 2 clips per data set, but {test_set.dataset} has {len(test_set.clips)}: "
                "raise --episodes, or leave out fvd"
            )
