"""Which clips an episode gives: starts, stride, frame indices, crop and colour jitter, as pure functions of its key.

Every choice is a keyed hash of (seed, data set, episode key, what is chosen), so no order of work, number of processes or
library version changes it. Starts are stratified: each of the K clips falls into its own K-th of the episode, which covers
it evenly and leaves a clip picked at random uniform over all starts.
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
# KeyedRandom of a crop before the centred square is taken instead, as in torchvision's RandomResizedCrop.
_CROP_ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Augmentation:
    """One draw, the same for all frames of a clip.

    Attributes:
        crop: The part of the frame that is kept and resized to the square.
        jitter: (`brightness`, `contrast`, `saturation` or `hue`, factor or shift), in the order of application.
    """

    crop: Box
    jitter: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ClipPlan:
    """One clip of an episode.

    Attributes:
        start: First frame (that of the goal not counted).
        stride: Frames between neighbours; fractional where it follows from a time.
        frames: (T) indices into the episode, the last frame repeated where it is too short.
        view: 0 is plain, the others are augmented.
        augmentation: None for a plain view.
    """

    start: int
    stride: float
    frames: tuple[int, ...]
    view: int
    augmentation: Augmentation | None


@dataclass(frozen=True)
class EpisodeShape:
    """What `plan_clips` needs to know of an episode; see `pipeline.Episode`."""

    dataset: str
    key: str
    num_frames: int
    height: int
    width: int
    rate: float | None
    base_step: float

    @classmethod
    def of(cls, episode: Episode) -> "EpisodeShape":
        """The shape of an opened episode."""
        return cls(**{field.name: getattr(episode, field.name) for field in dataclasses.fields(cls)})


class KeyedRandom:
    """Uniform numbers that depend on nothing but a key and the name of what is drawn."""

    def __init__(self, *key: str | int) -> None:
        self.key = key

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        digest = hashlib.blake2b(canonical_json([*self.key, name]).encode(), digest_size=8).digest()
        return low + (high - low) * ((int.from_bytes(digest, "little") >> 11) / 2**53)

    def below(self, name: str, count: int) -> int:
        """A whole number in [0, count)."""
        return min(int(self.uniform(name) * count), count - 1)


def resolve_clips(config: ClipsConfig, context_length: int) -> ClipsConfig:
    """Fill in what a recipe leaves to the tokenizer: 16 frames (17 with a goal), and its context length.

    Args:
        config: The recipe's section.
        context_length: The tokenizer's own.

    Raises:
        ConfigError: Context and clip length don't go together.
    """
    length = config.length if config.length is not None else _PUBLISHED_LENGTH + config.goal
    context = config.context_length if config.context_length is not None else context_length
    if not 1 <= context <= context_length:
        raise ConfigError(
            f"clips.context_length must be 1 to {context_length}, the tokenizer's context frames, not {context}; "
            "train a tokenizer with more"
        )
    if context >= length:
        raise ConfigError(f"clips.length {length} leaves no future frames after {context} context frames: make it longer")
    if config.goal and context < 2:
        raise ConfigError("clips.goal needs at least 2 context frames, the goal and one of the clip; use another tokenizer")
    return dataclasses.replace(config, length=length, context_length=context)


def is_held_out(dataset: str, key: str, share: float) -> bool:
    """Whether an episode never enters training clips; independent of the seed, so that no new seed leaks it."""
    return KeyedRandom("held_out", dataset, key).uniform("share") < share


def are_held_out(dataset: str, keys: Iterable[str], share: float) -> np.ndarray:
    """`is_held_out` of many episodes of a data set, (N,) bool, in a fifth of the time."""
    return held_out_thresholds(dataset, keys) < share


def held_out_thresholds(dataset: str, keys: Iterable[str]) -> np.ndarray:
    """The share of held-out episodes above which each of many episodes is held out, (N,) float64."""
    before, after = canonical_json(["held_out", dataset])[:-1] + ",", ',"share"]'
    text = json.JSONEncoder(ensure_ascii=False).encode
    digests = (hashlib.blake2b((before + text(key) + after).encode(), digest_size=8).digest() for key in keys)
    return (np.frombuffer(b"".join(digests), "<u8") >> np.uint64(11)) / 2**53


def stride_of(clips: ClipsConfig, episode: EpisodeShape) -> float:
    """Frames between neighbours of a clip.

    `reference` is max(round(base_step / 3), 1), for episodes shorter than such a clip at most max(1, frames // length)
    (the rule of the published models). Seconds and whole frames are kept as they are: a time is a time.

    Raises:
        ConfigError: The stride is a time and the episode's rate is not known.
    """
    length = _length(clips)
    if clips.stride == "reference":
        return min(max(round(episode.base_step / 3), 1), max(1, episode.num_frames // length))
    if not clips.stride.endswith("s"):
        return int(clips.stride)
    if episode.rate is None:
        raise ConfigError(
            f"clips.stride {clips.stride} needs a frame rate, and data set {episode.dataset} has none: "
            "use `reference` or a number of frames, or add the rate to the catalog and ingest again"
        )
    return float(clips.stride[:-1]) * episode.rate


def plan_clips(episode: EpisodeShape, clips: ClipsConfig, views: int) -> list[ClipPlan]:
    """The clips of an episode, position by position, view 0 first.

    Args:
        episode: Its size, rate and key.
        clips: With length and context length filled in (`resolve_clips`).
        views: Views of every position; 1 for held-out and evaluation splits.

    Returns:
        `clips.per_episode` x `views` plans.

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
    """(T) indices into an episode of a clip that starts at `start`; the last frame is repeated where it is too short."""
    last = num_frames - 1
    frames = tuple(min(start + _nearest(step * stride), last) for step in range(_length(clips) - clips.goal))
    return (last, *frames) if clips.goal else frames


def draw_augmentation(draws: KeyedRandom, clips: ClipsConfig, episode: EpisodeShape) -> Augmentation:
    """Crop and colour jitter, with torchvision's distributions: area uniform, aspect log-uniform, factors uniform."""
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
        raise ValueError("clip length is not filled in; call resolve_clips first")
    return clips.length


def _nearest(value: float) -> int:
    # Halves go up, so that a stride of 2.5 gives steps of 3, 2, 3, 2 (Python's round would give 2, 3, 3, 2).
    return math.floor(value + 0.5)
