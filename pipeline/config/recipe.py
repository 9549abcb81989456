"""The recipe: one experiment for all stages, as dataclasses that YAML files and the command line fill.

All sections live here and in `pipeline.config.model`, without torch, because every command reads the same recipe. A section
checks itself; its errors say what to do.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from pipeline.common.errors import require
from pipeline.common.measured_json import json_values
from pipeline.config.bounds import CLIPS_BOUNDS, DATA_BOUNDS, QUALITY_BOUNDS, STRIDE, check_bounds
from pipeline.config.model import ModelConfig, TokenizerConfig, TrainingConfig

FrameEncoding = Literal["jpeg", "source", "png"]


@dataclass
class DataConfig:
    """Which data sets to use, and how episode shards store their frames.

    Attributes:
        mixture: Published mixture of data sets (`configs/mixtures.yaml`); without it and `weights`, numbers of clips count.
        weights: Data set name -> sampling weight, instead of a published mixture.
        missing: If data sets have no token shards: stop with an `error`, or `skip` them and sample the others by weight.
        frames: How shards store frames: `source` (bytes unchanged), `jpeg` (resized) or `png` (resized).
        resolution: Frame side in pixels that the model sees; shards keep the short side at 1.25 times this.
        jpeg_quality: Quality of re-encoded JPEG frames.
        shard_mib: Approximate size of an episode shard in MiB.
    """

    mixture: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    missing: Literal["error", "skip"] = "error"
    frames: FrameEncoding = "jpeg"
    resolution: int = 64
    jpeg_quality: int = 95
    shard_mib: int = 256

    def __post_init__(self) -> None:
        require(not (self.mixture and self.weights), "data.mixture and data.weights exclude each other: remove one")
        check_bounds("data", self, DATA_BOUNDS)


@dataclass
class ClipsConfig:
    """Which clips are cut from an episode. `configs/oxe-64-act-free-small.yaml` has the published values.

    Attributes:
        length: Frames per clip, context included; by default 16, or 17 with `goal`.
        context_length: Number of context frames; by default the tokenizer's.
        stride: Frame step: a number of frames, a time such as `0.33s`, or `reference` (the published rule).
        per_episode: Clip positions per episode.
        views: Views of each position; view 0 is plain, the others are augmented.
        goal: Put the last frame first, as a context frame (goal-conditioned models).
        held_out: Fraction of episodes, chosen by a hash of their key, that is never trained on.
        crop_scale: Smallest and largest area of a crop, as a fraction of the squared short side.
        crop_ratio: Smallest and largest aspect ratio of a crop.
        brightness: Largest change of brightness.
        contrast: Largest change of contrast.
        saturation: Largest change of saturation.
        hue: Largest shift of hue, in turns of the colour circle.
        seed: Seed of clip positions and augmentation.
    """

    length: int | None = None
    context_length: int | None = None
    stride: str = "reference"
    per_episode: int = 4
    views: int = 1
    goal: bool = False
    held_out: float = 0.01
    crop_scale: tuple[float, float] = (0.8, 1.0)
    crop_ratio: tuple[float, float] = (0.9, 1.1)
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds("clips", self, CLIPS_BOUNDS)
        valid = self.stride == "reference" or re.fullmatch(r"[0-9]+|[0-9]*\.?[0-9]+s", self.stride)
        require(bool(valid), f"clips.stride must be `reference`, seconds such as `0.33s`, or frames, not {self.stride!r}")
        require(
            self.stride == "reference" or STRIDE.contains(float(self.stride.removesuffix("s"))),
            f"clips.stride must be above 0 and at most {STRIDE.high:g} (frames or seconds), not {self.stride}",
        )
        require(self.crop_scale[0] <= self.crop_scale[1], f"clips.crop_scale must be [least, greatest], not {self.crop_scale}")
        require(self.crop_ratio[0] <= self.crop_ratio[1], f"clips.crop_ratio must be [least, greatest], not {self.crop_ratio}")


@dataclass
class QualityConfig:
    """Which episodes to exclude by the quality of their images (`pipeline.episodes.quality`); by default none.

    Attributes:
        max_static: Largest fraction of neighbouring frame pairs in which nothing moves.
        max_uniform: Largest fraction of frames that are black or of one colour.
        max_repeated: Largest fraction of frames that repeat another frame, byte for byte.
        max_swap_score: Largest score, -1 to 1, of swapped red and blue; 0.5 excludes episodes that are nearly all blue.
        duplicates: `keep` all, or exclude copies of another episode: `exact` ones, or `near` ones too.
        near_bits: Largest number of bits, of 568, in which perceptual hashes of near duplicates differ.
    """

    max_static: float | None = None
    max_uniform: float | None = None
    max_repeated: float | None = None
    max_swap_score: float | None = None
    duplicates: Literal["keep", "exact", "near"] = "keep"
    near_bits: int = 24

    def __post_init__(self) -> None:
        check_bounds("quality", self, QUALITY_BOUNDS)

    @property
    def active(self) -> bool:
        """Whether any filter is on."""
        return self.duplicates != "keep" or any(
            limit is not None for limit in (self.max_static, self.max_uniform, self.max_repeated, self.max_swap_score)
        )


@dataclass
class Recipe:
    """One experiment for all stages. The sections document their keys."""

    data: DataConfig = field(default_factory=DataConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def as_dict(self) -> dict[str, Any]:
        """Returns the recipe as nested mappings, ready for JSON and YAML."""
        return json_values(dataclasses.asdict(self))

    def as_yaml(self) -> str:
        """Returns the recipe as YAML text that `--config` reads."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)
