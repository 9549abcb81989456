"""The recipe: one experiment for all stages, as dataclasses that YAML files and the command line fill.

All sections live here, in the lowest package and without torch, because every command reads the same recipe. A section
checks itself; its errors say what to do.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from pipeline.errors import ConfigError

FrameEncoding = Literal["jpeg", "source", "png"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass
class DataConfig:
    """Which data, and how its frames are kept.

    Attributes:
        mixture: Name of a published mixture (`configs/mixtures.yaml`); None weighs data sets by `weights`, or, without
            these, by their number of clips.
        weights: Data set name -> weight, in place of a named mixture.
        frames: How frames are kept in episode shards: `source` (bytes untouched), `jpeg` (resized) or `png` (resized).
        resolution: Side in pixels of the frames that the model will see; shards keep the short side at 1.25 x this.
        jpeg_quality: Quality of re-encoded frames.
        shard_mib: About how large an episode shard becomes, in MiB.
    """

    mixture: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    frames: FrameEncoding = "jpeg"
    resolution: int = 64
    jpeg_quality: int = 95
    shard_mib: int = 256

    def __post_init__(self) -> None:
        _require(not (self.mixture and self.weights), "data.mixture and data.weights exclude each other: remove one")
        _require(all(w > 0 for w in self.weights.values()), "data.weights must all be above 0: leave a data set out instead")
        _require(8 <= self.resolution <= 4096, f"data.resolution must be 8 to 4096, not {self.resolution}")
        _require(1 <= self.jpeg_quality <= 100, f"data.jpeg_quality must be 1 to 100, not {self.jpeg_quality}")
        _require(self.shard_mib >= 1, f"data.shard_mib must be at least 1, not {self.shard_mib}")


@dataclass
class ClipsConfig:
    """Which clips are cut from an episode. See `spec/world-model.md` for the published numbers.

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
        valid = self.stride == "reference" or re.fullmatch(r"\d+|\d*\.?\d+s", self.stride)
        _require(bool(valid), f"clips.stride must be `reference`, seconds such as `0.33s`, or frames, not {self.stride!r}")
        _require(self.length is None or self.length >= 2, f"clips.length must be at least 2, not {self.length}")
        _require(self.per_episode >= 1, f"clips.per_episode must be at least 1, not {self.per_episode}")
        _require(1 <= self.views <= 32767, f"clips.views must be 1 to 32767, not {self.views}")
        _require(0 <= self.held_out < 1, f"clips.held_out must be in [0, 1), not {self.held_out}")
        _require(
            0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            f"clips.crop_scale is no range in (0, 1]: {self.crop_scale}",
        )
        _require(0 < self.crop_ratio[0] <= self.crop_ratio[1], f"clips.crop_ratio is no range above 0: {self.crop_ratio}")


@dataclass
class QualityConfig:
    """Which episodes give no clips, by what was measured of their pictures (`pipeline.quality`); by default all do.

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
        for name in ("max_static", "max_uniform", "max_repeated"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, f"quality.{name} is a share, 0 to 1, not {value}")
        score = self.max_swap_score
        _require(score is None or -1 <= score <= 1, f"quality.max_swap_score must be -1 to 1, not {score}")
        _require(0 <= self.near_bits <= 200, f"quality.near_bits must be 0 to 200 of 568 bits, not {self.near_bits}")

    @property
    def active(self) -> bool:
        """Whether anything may be left out."""
        return self.duplicates != "keep" or any(
            limit is not None for limit in (self.max_static, self.max_uniform, self.max_repeated, self.max_swap_score)
        )


@dataclass
class TokenizerConfig:
    """The tokenizer: its shape when it is trained from scratch, its training, and how it runs over shards.

    Attributes:
        resolution: Side of the square frames in pixels.
        context_length: Context frames it is trained with.
        block_out_channels: Channels of the blocks, from full resolution down.
        layers_per_block: Residual layers of an encoder block.
        latent_channels: Width of a code.
        num_vq_embeddings: Codes for context frames.
        num_dyn_embeddings: Codes for future frames.
        patch_size: Latent positions along one side that share one future-frame code.
        max_att_resolution: Cross-attention happens up to this feature resolution.
        segment_length: Frames of a training clip.
        horizon: Strides out of which the frames of a training clip are drawn.
        steps: Optimizer steps of training.
        batch_size: Training clips a step, over all processes.
        learning_rate: Of AdamW, constant after warm-up.
        warmup_steps: Steps of linear warm-up.
        l1_weight: Of the absolute reconstruction error.
        l2_weight: Of the squared reconstruction error, 0 as published. Absolute error alone spends itself on faint ripples in
            large even areas and neglects small objects, where no perceptual loss brings them back.
        lpips_weight: Of the perceptual loss (LPIPS over VGG16); 1 as published, 0 where no weights of VGG16 are at hand.
        vgg_weights: File with VGG16's weights, for the perceptual loss and for LPIPS of held-out clips.
        disc_weight: Of the adversarial loss, times the adaptive ratio of gradient norms; 0.8 as published, 0 trains without.
        disc_start: Step from which on there is an adversarial loss.
        disc_learning_rate: Of the discriminator's AdamW.
        balanced_loss: Whether the reconstruction and perceptual losses of context and future frames count by their share of
            a clip's frames, so that every frame weighs the same, in place of once each.
        commitment_weight: Of both commitment losses.
        ema_decay: Decay of the running average of the weights that is evaluated and written; 0 takes the weights themselves.
        revive_every: Steps between replacements of rarely used codes by current features; 0 turns it off.
        quantize_warmup: Steps over which quantization sets in, from none to all; 0, as published, quantizes from the first
            step on. Small things that no code serves yet would else never reach the decoder, and so never get a code.
        training_precision: In which it is trained; codebooks and losses stay in fp32.
        weights_precision: Of the written weights file; fp16 halves it. It is read back into fp32.
        seed: Of initialisation and of the order of training clips.
        log_every: Steps between lines of metrics.
        checkpoint_every: Steps between checkpoints, each with an evaluation on held-out episodes.
        precision: In which the frozen tokenizer runs over shards.
        clips_per_batch: Clips that go through the frozen tokenizer at once.
    """

    resolution: int = 64
    context_length: int = 2
    block_out_channels: tuple[int, ...] = (128, 256, 512)
    layers_per_block: int = 2
    latent_channels: int = 64
    num_vq_embeddings: int = 8192
    num_dyn_embeddings: int = 8192
    patch_size: int = 4
    max_att_resolution: int = 16
    segment_length: int = 8
    horizon: int = 16
    steps: int = 1_000_000
    batch_size: int = 64
    learning_rate: float = 5e-4
    warmup_steps: int = 500
    l1_weight: float = 1.0
    l2_weight: float = 0.0
    lpips_weight: float = 0.0
    vgg_weights: str | None = None
    disc_weight: float = 0.0
    disc_start: int = 0
    disc_learning_rate: float = 1e-4
    balanced_loss: bool = False
    commitment_weight: float = 1.0
    ema_decay: float = 0.0
    revive_every: int = 200
    quantize_warmup: int = 0
    training_precision: Literal["fp32", "bf16"] = "fp32"
    weights_precision: Literal["fp32", "fp16"] = "fp32"
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    precision: Precision = "fp32"
    clips_per_batch: int = 16

    def __post_init__(self) -> None:
        grid = self.resolution >> (len(self.block_out_channels) - 1)
        _require(
            all(channels % 32 == 0 for channels in self.block_out_channels),
            f"tokenizer.block_out_channels must be multiples of 32 (group normalisation): {self.block_out_channels}",
        )
        _require(
            grid % self.patch_size == 0,
            f"tokenizer.patch_size {self.patch_size} must divide the latent grid of {grid} "
            f"({self.resolution} pixels halved {len(self.block_out_channels) - 1} times)",
        )
        _require(
            self.context_length < self.segment_length <= self.horizon,
            "tokenizer.context_length < tokenizer.segment_length <= tokenizer.horizon must hold, not "
            f"{self.context_length}, {self.segment_length}, {self.horizon}",
        )
        for name in ("l1_weight", "l2_weight", "lpips_weight", "disc_weight", "commitment_weight", "disc_start"):
            _require(getattr(self, name) >= 0, f"tokenizer.{name} must be at least 0, not {getattr(self, name)}")
        _require(0 <= self.ema_decay < 1, f"tokenizer.ema_decay must be in [0, 1), not {self.ema_decay}")
        _require(
            not self.disc_weight or self.resolution >= 32,
            f"tokenizer.disc_weight needs frames of at least 32 pixels a side, not {self.resolution}: set it to 0",
        )


@dataclass
class ModelConfig:
    """The Llama that predicts the tokenizer's ids. Defaults are the published small model.

    Attributes:
        layers: Transformer layers.
        heads: Attention heads.
        width: Width of the residual stream.
        mlp_width: Width inside the MLP.
        positions: Longest sequence of ids.
        attention_dropout: Dropout on attention weights while training.
        actions: Whether the model is conditioned on actions; their dimension comes from the token shards.
        rewards: Whether the model predicts rewards.
        reward_weight: Of the squared error of the rewards beside the loss per label id; 1 as published.
        action_reconstruction: Of the squared error with which every id of a future frame tells the action that led there; 0,
            as in all published runs, has no such head.
    """

    layers: int = 12
    heads: int = 12
    width: int = 768
    mlp_width: int = 3072
    positions: int = 1024
    attention_dropout: float = 0.1
    actions: bool = False
    rewards: bool = False
    reward_weight: float = 1.0
    action_reconstruction: float = 0.0

    def __post_init__(self) -> None:
        _require(self.reward_weight > 0, f"model.reward_weight must be above 0, not {self.reward_weight}")
        _require(
            self.action_reconstruction >= 0,
            f"model.action_reconstruction must be at least 0, not {self.action_reconstruction}",
        )
        _require(
            self.actions or not self.action_reconstruction,
            "model.action_reconstruction needs model.actions: turn that on, or set it to 0",
        )
        _require(self.width % self.heads == 0, f"model.heads {self.heads} must divide model.width {self.width}")
        _require(
            (self.width // self.heads) % 2 == 0,
            f"model.width / model.heads must be even, not {self.width // self.heads}",
        )


@dataclass
class TrainingConfig:
    """Pre-training of the transformer. Batch sizes come from here alone, whatever a DeepSpeed file says.

    Attributes:
        global_batch: Clips a step, over all processes.
        micro_batch: Clips in one forward pass of one process; the rest is gradient accumulation. None takes all at once.
        steps: Optimizer steps.
        learning_rate: Peak learning rate.
        init_from: Model or transformer folder (local, a URL or a hub id) whose Llama is what training starts from; heads for
            actions and rewards start anew. None starts from random weights.
        lora_rank: Rank of the updates of weight matrices that are trained in place of the matrices themselves (LoRA); 8 in
            the published code, 0 trains all weights. The exported model has them merged.
        lora_alpha: Updates are scaled by lora_alpha / lora_rank; 32 in the published code.
        lora_dropout: Dropout in front of the updates; 0 in the published code.
        schedule: Shape of the learning rate over steps after warm-up; `wsd` stays at the peak, then decays linearly.
        warmup_steps: Steps of linear warm-up.
        decay_steps: Steps at the end of `wsd` in which it decays; None takes a tenth of all.
        final_learning_rate: Share of the peak that cosine and `wsd` end on.
        weight_decay: On weight matrices; none on embeddings, norms and biases.
        adam_beta1: First moment decay.
        adam_beta2: Second moment decay.
        gradient_norm: Gradients are clipped to this norm.
        precision: bf16 (with fp32 master weights and accumulation) or fp32.
        zero_stage: What DeepSpeed shards: 1 the optimizer, 2 gradients too, 3 parameters too.
        deepspeed: A DeepSpeed JSON file whose settings are added (offload, communication), never batch sizes.
        seed: Of initialisation, order and dropout.
        workers: Threads that read and collate batches ahead.
        log_every: Steps between lines of metrics.
        wandb_project: Project of Weights & Biases that metrics and predictions go to as well; None does without. What else
            it needs (WANDB_MODE=offline, WANDB_ENTITY, WANDB_NAME, the key) it reads from its own environment variables.
        evaluate_every: Steps between evaluations on held-out clips; there is always one at the end.
        evaluate_clips: Held-out clips of each data set that an evaluation takes, at most.
        evaluate_predictions: Held-out clips that are predicted at each evaluation, as animations; they need the tokenizer.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Newest checkpoints kept.
        keep_every: Checkpoints of a multiple of this many steps are kept for good; 0 keeps none so.
        nonfinite_limit: A step whose loss or gradient is not finite is skipped; so many in a row stop the run.
        compile: Whether the model is compiled.
        splits: Splits of the token shards that are trained on.
    """

    global_batch: int = 64
    micro_batch: int | None = None
    steps: int = 700_000
    learning_rate: float = 1e-4
    init_from: str | None = None
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup_steps: int = 5000
    decay_steps: int | None = None
    final_learning_rate: float = 0.0
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    gradient_norm: float = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 1
    deepspeed: str | None = None
    seed: int = 0
    workers: int = 1
    log_every: int = 10
    wandb_project: str | None = None
    evaluate_every: int = 1000
    evaluate_clips: int = 64
    evaluate_predictions: int = 4
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    keep_every: int = 0
    nonfinite_limit: int = 5
    compile: bool = False
    splits: tuple[str, ...] = ("train",)

    def __post_init__(self) -> None:
        _require(self.global_batch >= 1, f"training.global_batch must be at least 1, not {self.global_batch}")
        _require(self.steps >= 1, f"training.steps must be at least 1, not {self.steps}")
        _require(self.lora_rank >= 0, f"training.lora_rank must be at least 0, not {self.lora_rank}")
        _require(
            self.lora_rank == 0 or self.init_from is not None,
            "training.lora_rank trains updates of a trained model: name that by training.init_from, or set it to 0",
        )
        _require(0 <= self.lora_dropout < 1, f"training.lora_dropout must be in [0, 1), not {self.lora_dropout}")
        _require(self.lora_alpha > 0, f"training.lora_alpha must be above 0, not {self.lora_alpha}")
        _require(
            self.decay_steps is None or self.decay_steps >= 1,
            f"training.decay_steps must be at least 1, not {self.decay_steps}",
        )
        _require(self.learning_rate > 0, f"training.learning_rate must be above 0, not {self.learning_rate}")
        _require(self.checkpoint_every >= 1, f"training.checkpoint_every must be at least 1, not {self.checkpoint_every}")
        _require(self.keep_checkpoints >= 1, f"training.keep_checkpoints must be at least 1, not {self.keep_checkpoints}")
        _require(
            self.keep_every >= 0 and self.keep_every % self.checkpoint_every == 0,
            f"training.keep_every must be 0 or a multiple of training.checkpoint_every {self.checkpoint_every}, "
            f"not {self.keep_every}",
        )
        _require(self.nonfinite_limit >= 1, f"training.nonfinite_limit must be at least 1, not {self.nonfinite_limit}")
        _require(self.log_every >= 1, f"training.log_every must be at least 1, not {self.log_every}")
        _require(self.evaluate_every >= 1, f"training.evaluate_every must be at least 1, not {self.evaluate_every}")
        _require(self.evaluate_clips >= 1, f"training.evaluate_clips must be at least 1, not {self.evaluate_clips}")
        _require(
            self.evaluate_predictions >= 0, f"training.evaluate_predictions must be at least 0, not {self.evaluate_predictions}"
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
