"""Samples the clips of an episode: starts, stride, frame indices, crop and colour jitter, as pure functions of its key.

Every random number is a hash of (seed, data set, episode key, name of the number), so it does not depend on the order of work,
the number of processes or a library version. Starts are stratified: each of the K clips starts in its own K-th of the episode,
so the clips cover it evenly, and a randomly picked clip is uniform over all starts.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.common.errors import ConfigError
from pipeline.common.manifests import canonical_json
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.episode import Episode

_PUBLISHED_LENGTH = 16
# After this many random crops that don't fit, the centred square is used, as in torchvision's RandomResizedCrop.
_CROP_ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Augmentation:
    """The random crop and colour jitter of a clip, the same for all its frames.

    Attributes:
        crop: The part of the frame that is resized to the square.
        jitter: (`brightness`, `contrast`, `saturation` or `hue`, factor or shift), in the order of application.
    """

    crop: Box
    jitter: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ClipPlan:
    """One clip of an episode.

    Attributes:
        start: Index of the first frame in the episode, not counting a goal frame.
        stride: Episode frames between neighbouring clip frames; may be fractional if the stride is in seconds.
        frames: (T) frame indices in the episode. A clip past the episode's end repeats the last frame.
        view: Number of the view; 0 is plain, the others are augmented.
        augmentation: Augmentation of the view; None for the plain view.
    """

    start: int
    stride: float
    frames: tuple[int, ...]
    view: int
    augmentation: Augmentation | None


@dataclass(frozen=True)
class EpisodeShape:
    """The properties of an episode that `plan_clips` needs; see `pipeline.Episode`."""

    dataset: str
    key: str
    num_frames: int
    height: int
    width: int
    rate: float | None
    base_step: float

    @classmethod
    def of(cls, episode: Episode) -> "EpisodeShape":
        """The shape of an open episode."""
        return cls(**{field.name: getattr(episode, field.name) for field in dataclasses.fields(cls)})


class KeyedRandom:
    """Random numbers that depend only on a key and the name of the number."""

    def __init__(self, *key: str | int) -> None:
        self.key = key

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        """A number uniform in [low, high)."""
        digest = hashlib.blake2b(canonical_json([*self.key, name]).encode(), digest_size=8).digest()
        return low + (high - low) * ((int.from_bytes(digest, "little") >> 11) / 2**53)

    def below(self, name: str, count: int) -> int:
        """An integer uniform in [0, count)."""
        return min(int(self.uniform(name) * count), count - 1)


def resolve_clips(config: ClipsConfig, context_length: int) -> ClipsConfig:
    """Fill in clip length and context length: by default 16 frames (17 with a goal), and the tokenizer's context.

    Args:
        config: The recipe's section `clips`.
        context_length: Context frames of the tokenizer.

    Raises:
        ConfigError: Context length and clip length don't match.
    """
    length = config.length if config.length is not None else _PUBLISHED_LENGTH + config.goal
    context = config.context_length if config.context_length is not None else context_length
    if not 1 <= context <= context_length:
        raise ConfigError(
            f"clips.context_length must be 1 to {context_length}, the tokenizer's context frames, not {context}; "
            "for more, train another tokenizer"
        )
    if context >= length:
        raise ConfigError(f"clips.length {length} leaves no future frames after {context} context frames: increase it")
    if config.goal and context < 2:
        raise ConfigError("clips.goal needs 2 or more context frames, the goal and one of the clip; use another tokenizer")
    return dataclasses.replace(config, length=length, context_length=context)


def is_held_out(dataset: str, key: str, share: float) -> bool:
    """Whether an episode is kept out of training clips. It does not depend on the seed, so a new seed can't leak it."""
    return KeyedRandom("held_out", dataset, key).uniform("share") < share


def are_held_out(dataset: str, keys: Iterable[str], share: float) -> np.ndarray:
    """`is_held_out` for many episodes of a data set, (N,) bool, five times as fast."""
    return held_out_thresholds(dataset, keys) < share


def held_out_thresholds(dataset: str, keys: Iterable[str]) -> np.ndarray:
    """For each episode, the value of `clips.held_out` above which it is held out, (N,) float64."""
    before, after = canonical_json(["held_out", dataset])[:-1] + ",", ',"share"]'
    text = json.JSONEncoder(ensure_ascii=False).encode
    digests = (hashlib.blake2b((before + text(key) + after).encode(), digest_size=8).digest() for key in keys)
    return (np.frombuffer(b"".join(digests), "<u8") >> np.uint64(11)) / 2**53


def stride_of(clips: ClipsConfig, episode: EpisodeShape) -> float:
    """Episode frames between neighbouring frames of a clip.

    `reference` follows the published models: max(round(base_step / 3), 1), and for episodes shorter than such a clip at most
    max(1, frames // length). A stride in seconds or in frames is used for short episodes too.

    Raises:
        ConfigError: The stride is in seconds and the episode's rate is unknown.
    """
    length = _length(clips)
    if clips.stride == "reference":
        return min(max(round(episode.base_step / 3), 1), max(1, episode.num_frames // length))
    if not clips.stride.endswith("s"):
        return int(clips.stride)
    if episode.rate is None:
        raise ConfigError(
            f"clips.stride {clips.stride} needs a frame rate, but data set {episode.dataset} has none: "
            "use `reference` or a number of frames, or add the rate to the catalog and ingest again"
        )
    return float(clips.stride[:-1]) * episode.rate


def plan_clips(episode: EpisodeShape, clips: ClipsConfig, views: int) -> list[ClipPlan]:
    """Plan the clips of an episode.

    Args:
        episode: Size, rate and key of the episode.
        clips: Clip settings with everything filled in (`resolve_clips`).
        views: Views of each position; 1 for held-out episodes and evaluation splits.

    Returns:
        `clips.per_episode` x `views` plans, ordered by position, then by view.

    Raises:
        ConfigError: See `stride_of`.
    """
    stride = stride_of(clips, episode)
    steps = _length(clips) - clips.goal
    last = episode.num_frames - 1
    starts = max(0, last - _nearest((steps - 1) * stride)) + 1
    plans = []
    for position in range(clips.per_episode):
        draws = KeyedRandom(clips.seed, episode.dataset, episode.key, position)
        start = min(int((position + draws.uniform("start")) / clips.per_episode * starts), starts - 1)
        frames = frame_indices(clips, start, stride, episode.num_frames)
        for view in range(views):
            augmentation = draw_augmentation(KeyedRandom(*draws.key, view), clips, episode) if view else None
            plans.append(ClipPlan(start, stride, frames, view, augmentation))
    return plans


def frame_indices(clips: ClipsConfig, start: int, stride: float, num_frames: int) -> tuple[int, ...]:
    """(T) frame indices of the clip that starts at `start`. A clip past the episode's end repeats the last frame."""
    last = num_frames - 1
    frames = tuple(min(start + _nearest(step * stride), last) for step in range(_length(clips) - clips.goal))
    return (last, *frames) if clips.goal else frames


def draw_augmentation(draws: KeyedRandom, clips: ClipsConfig, episode: EpisodeShape) -> Augmentation:
    """Random crop and colour jitter with torchvision's distributions: uniform area, log-uniform aspect, uniform factors."""
    ranges = {
        "brightness": (1 - clips.brightness, 1 + clips.brightness),
        "contrast": (1 - clips.contrast, 1 + clips.contrast),
        "saturation": (1 - clips.saturation, 1 + clips.saturation),
        "hue": (-clips.hue, clips.hue),
    }
    order = sorted(ranges, key=lambda name: draws.uniform(f"order of {name}"))
    jitter = tuple(
        (name, draws.uniform(name, max(ranges[name][0], -0.5 if name == "hue" else 0.0), ranges[name][1])) for name in order
    )
    return Augmentation(_draw_crop(draws, clips, episode.height, episode.width), jitter)


def _draw_crop(draws: KeyedRandom, clips: ClipsConfig, height: int, width: int) -> Box:
    short = min(height, width)
    low, high = (math.log(ratio) for ratio in clips.crop_ratio)
    box_height = box_width = short
    for attempt in range(_CROP_ATTEMPTS):
        area = draws.uniform(f"area {attempt}", *clips.crop_scale) * short * short
        ratio = math.exp(draws.uniform(f"ratio {attempt}", low, high))
        tried = _nearest(math.sqrt(area / ratio)), _nearest(math.sqrt(area * ratio))
        if 0 < tried[0] <= height and 0 < tried[1] <= width:
            box_height, box_width = tried
            break
    else:
        return Box((height - short) // 2, (width - short) // 2, short, short)
    top = draws.below("top", height - box_height + 1)
    left = draws.below("left", width - box_width + 1)
    return Box(top, left, box_height, box_width)


def _length(clips: ClipsConfig) -> int:
    if clips.length is None:
        raise ValueError("clips.length is None; call resolve_clips first")
    return clips.length


def _nearest(value: float) -> int:
    # Rounds halves up, so that a stride of 2.5 gives steps of 3, 2, 3, 2 (Python's round gives 2, 3, 3, 2).
    return math.floor(value + 0.5)
