"""The recipe: one experiment for all stages, as dataclasses that YAML files and the command line fill.

All sections live here and in `pipeline.config.model`, in the lowest package and without torch, because every command reads
the same recipe. A section checks itself; its errors say what to do.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from pipeline.common.errors import require
from pipeline.config.bounds import CLIPS_BOUNDS, DATA_BOUNDS, QUALITY_BOUNDS, STRIDE, check_bounds
from pipeline.config.model import ModelConfig, TokenizerConfig, TrainingConfig

FrameEncoding = Literal["jpeg", "source", "png"]


@dataclass
class DataConfig:
    """Which data, and how its frames are kept.

    Attributes:
        mixture: Name of a published mixture (`configs/mixtures.yaml`); None weighs data sets by `weights`, or, without
            these, by their number of clips.
        weights: Data set name -> weight, in place of a named mixture.
        missing: What training does where the mixture or the weights name data sets without token shards: `error`, or `skip`
            these and share the samples out over the others by their weights.
        frames: How frames are kept in episode shards: `source` (bytes untouched), `jpeg` (resized) or `png` (resized).
        resolution: Side in pixels of the frames that the model will see; shards keep the short side at 1.25 x this.
        jpeg_quality: Quality of re-encoded frames.
        shard_mib: About how large an episode shard becomes, in MiB.
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
    """Which clips are cut from an episode. `configs/oxe-64-act-free-small.yaml` has the published numbers.

    Attributes:
        length: Frames of a clip, context included; None takes 16 (17 with `goal`).
        context_length: Context frames; None takes the tokenizer's own.
        stride: `reference` (max(round(base_step / 3), 1), shrunk for short episodes), a time in seconds such as `0.33s`,
            or a whole number of frames.
        per_episode: Clip positions drawn per episode.
        views: Views of every position; view 0 is plain, the others are augmented.
        goal: Put the last frame in front as the first context frame (goal-conditioned models).
        held_out: Share of the episodes, chosen by hash of their key, that never enter training clips.
        crop_scale: Least and greatest share of the squared short side that a crop keeps.
        crop_ratio: Least and greatest aspect ratio of a crop.
        brightness: Greatest change of brightness; contrast, saturation and hue likewise.
        contrast: See brightness.
        saturation: See brightness.
        hue: Greatest shift of hue, in turns of the colour circle.
        seed: Of all random choices above.
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
            f"clips.stride must be a time or a number of frames above 0 and at most {STRIDE.high:g}, not {self.stride}",
        )
        require(self.crop_scale[0] <= self.crop_scale[1], f"clips.crop_scale is no range: {self.crop_scale}")
        require(self.crop_ratio[0] <= self.crop_ratio[1], f"clips.crop_ratio is no range: {self.crop_ratio}")


@dataclass
class QualityConfig:
    """Which episodes give no clips, by what was measured of their pictures (`pipeline.episodes.quality`); by default all do.

    Attributes:
        max_static: Greatest share of neighbouring frames between which nothing moves.
        max_uniform: Greatest share of frames that are black or of one colour.
        max_repeated: Greatest share of frames that are another frame once more, byte for byte.
        max_swap_score: Greatest suspicion that red and blue are swapped, -1 to 1; 0.5 leaves out what is nearly all blue.
        duplicates: `keep`; leave out episodes that are `exact` copies of another one; or those that are `near` to one too.
        near_bits: In how many of their 568 bits the perceptual hashes of near duplicates may differ.
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
        """Whether anything may be left out."""
        return self.duplicates != "keep" or any(
            limit is not None for limit in (self.max_static, self.max_uniform, self.max_repeated, self.max_swap_score)
        )


@dataclass
class Recipe:
    """One experiment for all stages. See the sections' own docstrings."""

    data: DataConfig = field(default_factory=DataConfig)
    clips: ClipsConfig = field(default_factory=ClipsConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as nested mappings that JSON and YAML hold."""
        return dataclasses.asdict(self)

    def as_yaml(self) -> str:
        """The recipe as text that `--config` reads."""
        return yaml.safe_dump(json.loads(json.dumps(self.as_dict())), sort_keys=False)
