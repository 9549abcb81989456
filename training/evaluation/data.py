"""The clips of an evaluation: one a episode, of the data sets' episode shards, read by offset so that a process opens its own.

What the model was trained on is left out unless it is asked for, and so are episodes too short for a clip: one that ended in
repeated frames would flatter every row. Whatever is left out is counted, with the reason.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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

# Data sets named in one message.
_NAMED = 5


@dataclass(frozen=True)
class Wanted:
    """Which episodes are evaluated, and how clips are cut of them.

    Attributes:
        split: The split that they are of; None takes all splits.
        held_out: Only episodes that the model was never trained on.
        limit: Episodes of a data set at most; None takes all.
        clips: With length filled in.
        start: First frame of every clip.
        context: Context frames of a clip.
        side: Of the square frames that the model sees, in pixels.
        stride_given: Whether the stride is the user's or a protocol's, and not the model's own.
        free: Whether start, steps and stride may be chosen; a protocol sets them.
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
    """The episode of a clip, and how the clip is cut."""

    row: EpisodeRow
    clips: ClipsConfig

    @property
    def stride(self) -> float:
        """Frames between neighbours."""
        return stride_of(self.clips, self.row.shape)

    def read(self) -> Episode:
        """Its episode."""
        return read_sample(self.row.shard, self.row.offset, self.row.size)


@dataclass
class SplitCount:
    """Of one split of a data set: its episodes, those evaluated, and those of these that the model was trained on."""

    episodes: int = 0
    evaluated: int = 0
    trained_on: int = 0


@dataclass
class TestSet:
    """The clips of one data set.

    Attributes:
        dataset: Its name.
        folder: Where it lies.
        clips: What is evaluated, in order: splits that no training took first, then held-out episodes.
        splits: Counts by split.
        left_out: Reason -> episodes left out for it: `not_held_out`, `too_short`, `beyond_episodes`.
        time_steps: How strides were found, in words -> whether that is doubtful.
        short: The longest and the shortest of the episodes that are too short, as clips that don't fit.
    """

    dataset: str
    folder: str
    clips: list[TestClip] = field(default_factory=list)
    splits: dict[str, SplitCount] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=lambda: {"not_held_out": 0, "too_short": 0, "beyond_episodes": 0})
    time_steps: dict[str, bool] = field(default_factory=dict)
    short: list[TestClip] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """What an evaluation card says of it: where it is from, and a hash over the records of its shards."""
        used = {clip.row.shard for clip in self.clips}
        records = [record for record in read_manifests(self.folder) if storage.join(self.folder, record.shard) in used]
        digest = hashlib.sha256("\n".join(f"{record.shard} {record.sha256}" for record in records).encode())
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
    """What there is to evaluate.

    Attributes:
        sets: With at least one clip each.
        left_out: Data set -> why nothing of it is evaluated.
    """

    sets: list[TestSet]
    left_out: dict[str, str]

    @property
    def clips(self) -> list[TestClip]:
        """Of all data sets, in order."""
        return [clip for test_set in self.sets for clip in test_set.clips]

    @property
    def trained_on(self) -> int:
        """Clips of episodes that the model was trained on."""
        return sum(count.trained_on for test_set in self.sets for count in test_set.splits.values())


def open_test_data(shards: Sequence[str], wanted: Wanted, trained: TrainedOn) -> TestData:
    """The first episodes of every data set that are long enough and new to the model, or all of them where asked for.

    Args:
        shards: Output folders of ingest, or folders of single data sets.
        wanted: Which episodes.
        trained: What the model was trained on. Where its share of held-out episodes is not known, `clips.held_out` counts.

    Raises:
        ConfigError: No data set has the split, more would count as held out than was, or frames were shrunk too much.
        ShardError: There is no episode to evaluate; the message says why and what would do.
    """
    share = wanted.clips.held_out
    if wanted.held_out and trained.held_out is not None and share > trained.held_out:
        raise ConfigError(
            f"clips.held_out is {share:g}, but the model was trained without {trained.held_out:g} of the episodes: the others "
            "are no test. Leave it out, or score them with --held_out false"
        )
    tables = {name: (folder, read_episodes(folder)) for name, folder in sorted(find_datasets(shards).items())}
    there = sorted({split for _, table in tables.values() for split in table["split"].unique().to_pylist()})
    if wanted.split is not None and wanted.split not in there:
        raise ConfigError(
            f"--split {wanted.split}: no data set has that split; there are {', '.join(there)}. "
            "Leave --split out for all of them"
        )
    found = [_open_set(name, folder, table, wanted, trained) for name, (folder, table) in tables.items()]
    sets = [test_set for test_set in found if test_set.clips]
    left_out = {each.dataset: _why_empty(each, wanted, trained) for each in found if not each.clips}
    if not sets:
        named = [f"{name}: {reason}" for name, reason in left_out.items()]
        more = f"; and {len(named) - _NAMED} more data sets" if len(named) > _NAMED else ""
        raise ShardError(f"nothing to evaluate. {'; '.join(named[:_NAMED])}{more}: {_what_would_do(found, wanted)}")
    return TestData(sets, left_out)


def _open_set(dataset: str, folder: str, table: pa.Table, wanted: Wanted, trained: TrainedOn) -> TestSet:
    test_set = TestSet(dataset, folder)
    # Where episodes are limited, those of test splits come before those held out of a split that was trained on.
    order = np.argsort(np.array([split in trained.splits for split in table["split"].to_pylist()], bool), kind="stable")
    table = table.take(pa.array(order))
    # Which episodes are held out follows from the name that they were ingested under, whatever their folder is called now.
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
    """The clip of an episode, or None where that is too short, which is counted."""
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
    """Why nothing of a data set is evaluated."""
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
        f"its {test_set.left_out['too_short']} episodes{new} have {frames} frames, and a clip of {wanted.clips.length} at a "
        f"stride of {stride:g} needs {needed}{begun}"
    )


def _what_would_do(sets: Sequence[TestSet], wanted: Wanted) -> str:
    """What to ask for where nothing is left to evaluate."""
    short = [test_set.short[0] for test_set in sets if test_set.short]
    if not short:
        return "name data sets with a test split, or score what the model was trained on with --held_out false"
    longest = max(short, key=lambda clip: clip.row.shape.num_frames)
    return what_fits(longest.clips, wanted.start, longest.row.shape, wanted.context, wanted.free)


def require_enough(sets: Sequence[TestSet], with_fvd: bool) -> None:
    """Refuse what could not be summed up in the end.

    Raises:
        ConfigError: FVD is asked for, and a data set has a single clip.
    """
    for test_set in sets:
        if with_fvd and len(test_set.clips) < 2:
            raise ConfigError(
                f"fvd compares sets of clips, and {test_set.dataset} has {len(test_set.clips)} to evaluate: "
                "raise --episodes, or leave fvd out"
            )
