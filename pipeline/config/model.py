"""The recipe's sections about networks: the tokenizer, the transformer, and the transformer's training.

Imports no torch; see `pipeline.config.recipe`.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.common.errors import require
from pipeline.config.bounds import MAX_CODES, MODEL_BOUNDS, TOKENIZER_BOUNDS, TRAINING_BOUNDS, check_bounds

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
# Groups of each group normalisation in the tokenizer.
NORM_GROUPS = 32
# Smallest side in pixels: both networks halve it four times; the discriminator normalises over the rest.
_LPIPS_SIDE, _DISCRIMINATOR_SIDE = 16, 32


@dataclass(frozen=True)
class TokenizerShape:
    """Shape of a compressive VQ tokenizer. Defaults are the published 64x64 model.

    Attributes:
        resolution: Side of the square frames in pixels.
        context_length: Number of context frames.
        block_out_channels: Channels of each block, from full resolution down.
        layers_per_block: Residual layers per encoder block; a decoder block has one more.
        latent_channels: Width of the latent and of a code.
        num_vq_embeddings: Number of codes for context frames.
        num_dyn_embeddings: Number of codes for future frames.
        patch_size: Side of the square of latent positions that one future-frame code covers.
        max_att_resolution: Largest side of the feature maps that use cross-attention.
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


@dataclass(frozen=True)
class TokenizerConfig(TokenizerShape):
    """The tokenizer: its shape, its training, and how it encodes shards.

    Attributes:
        segment_length: Frames per training clip.
        horizon: Frames of a training clip are drawn from this many strides.
        steps: Number of optimizer steps.
        batch_size: Training clips per step, over all processes.
        learning_rate: Learning rate of AdamW after warm-up; it stays constant.
        warmup_steps: Steps of linear learning-rate warm-up.
        l1_weight: Weight of the absolute reconstruction error.
        l2_weight: Weight of the squared reconstruction error; published: 0.
        lpips_weight: Weight of the perceptual loss (LPIPS, needs the weights of VGG16); published: 1.
        vgg_weights: File with the weights of VGG16, for LPIPS; by default the one of `ivideogpt-fetch-weights`.
        disc_weight: Weight of the adversarial loss, times an adaptive ratio of gradient norms; published: 0.8, 0 = off.
        disc_start: Step at which the adversarial loss starts.
        disc_learning_rate: Learning rate of the discriminator's AdamW.
        balanced_loss: Weight the losses of context and future frames by their number of frames, not equally.
        commitment_weight: Weight of both commitment losses.
        static_patch_weight: Weight of the loss that gives all unchanged patches the same code; published: 0 = off.
        local_attention: Start cross-attention at the position of its query; published: false, spread over all positions.
        ema_decay: Decay of the moving average of the weights, which is evaluated and saved; 0 = no average.
        dead_code_reset_every: Steps between resets of rarely used codes to current features; 0 = off.
        quantize_warmup: Steps over which quantization fades in; published: 0 = full from the first step.
        training_precision: Precision of training; codebooks and losses stay in fp32.
        weights_precision: Precision of the saved weights; fp16 halves the file. Loading gives fp32.
        seed: Seed of initialisation and of the order of training clips.
        log_every: Steps between lines of metrics.
        checkpoint_every: Checkpointing interval in steps; each checkpoint is evaluated on held-out episodes.
        precision: Precision of the frozen tokenizer when it encodes shards.
        clips_per_batch: Clips that the frozen tokenizer encodes at once.
    """

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
    static_patch_weight: float = 0.0
    local_attention: bool = False
    ema_decay: float = 0.0
    dead_code_reset_every: int = 200
    quantize_warmup: int = 0
    training_precision: Literal["fp32", "bf16"] = "fp32"
    weights_precision: Literal["fp32", "fp16"] = "fp32"
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    precision: Precision = "fp32"
    clips_per_batch: int = 16

    def __post_init__(self) -> None:
        check_bounds("tokenizer", self, TOKENIZER_BOUNDS)
        require(
            len(self.block_out_channels) > 0 and all(channels % NORM_GROUPS == 0 for channels in self.block_out_channels),
            f"tokenizer.block_out_channels must be one or more multiples of {NORM_GROUPS} (group normalisation), "
            f"not {self.block_out_channels}",
        )
        halvings = len(self.block_out_channels) - 1
        require(
            self.resolution % (self.patch_size << halvings) == 0,
            f"tokenizer.resolution {self.resolution} must be a multiple of {self.patch_size << halvings}: "
            f"tokenizer.block_out_channels halves it {halvings} times, and tokenizer.patch_size {self.patch_size} must divide "
            "the rest",
        )
        codes = self.num_vq_embeddings + self.num_dyn_embeddings
        require(
            codes <= MAX_CODES,
            f"tokenizer.num_vq_embeddings + tokenizer.num_dyn_embeddings must be at most {MAX_CODES} (ids have 16 bits), "
            f"not {codes}",
        )
        require(
            self.context_length < self.segment_length <= self.horizon,
            "tokenizer.context_length < tokenizer.segment_length <= tokenizer.horizon must hold, not "
            f"{self.context_length}, {self.segment_length}, {self.horizon}",
        )
        require(
            self.l1_weight + self.l2_weight + self.lpips_weight > 0,
            "tokenizer.l1_weight, tokenizer.l2_weight and tokenizer.lpips_weight are all 0, so reconstructions count for "
            "nothing: set one above 0",
        )
        require(
            not self.lpips_weight or self.resolution >= _LPIPS_SIDE,
            f"tokenizer.lpips_weight needs frames of at least {_LPIPS_SIDE} pixels a side, not {self.resolution}: set it to 0",
        )
        require(
            self.vgg_weights is None or self.resolution >= _LPIPS_SIDE,
            f"tokenizer.vgg_weights needs frames of at least {_LPIPS_SIDE} pixels a side, not {self.resolution}: leave it out",
        )
        require(
            not self.disc_weight or self.resolution >= _DISCRIMINATOR_SIDE,
            f"tokenizer.disc_weight needs frames of at least {_DISCRIMINATOR_SIDE} pixels a side, not {self.resolution}: "
            "set it to 0",
        )


@dataclass
class ModelConfig:
    """The Llama that predicts tokens. Defaults are the published small model.

    Attributes:
        layers: Number of transformer layers.
        heads: Number of attention heads.
        width: Width of the residual stream.
        mlp_width: Width inside the MLP.
        positions: Longest sequence in tokens.
        attention_dropout: Dropout on attention weights during training.
        actions: Condition the model on actions; the token shards give their dimension.
        rewards: Predict rewards.
        reward_weight: Weight of the squared reward error; the loss per target token has weight 1. Published: 1.
        action_reconstruction: Weight of an auxiliary loss that predicts the action from each future frame; 0 = off.
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
        check_bounds("model", self, MODEL_BOUNDS)
        require(
            self.actions or not self.action_reconstruction,
            "model.action_reconstruction needs model.actions: turn model.actions on, or set model.action_reconstruction to 0",
        )
        require(self.width % self.heads == 0, f"model.heads {self.heads} must divide model.width {self.width}")
        require(
            (self.width // self.heads) % 2 == 0,
            f"model.width / model.heads must be even, not {self.width // self.heads}",
        )


@dataclass
class TrainingConfig:
    """Pre-training of the transformer.

    Attributes:
        global_batch: Clips per step, over all processes.
        micro_batch: Clips per forward pass of a process; the rest is gradient accumulation. By default all at once.
        steps: Number of optimizer steps.
        learning_rate: Peak learning rate.
        init_from: Model or transformer to start from (folder, URL or hub id); heads for actions and rewards start at random.
        lora_rank: Rank of LoRA updates, which the exported model has merged; published: 8. 0 = train all weights.
        lora_alpha: LoRA updates are scaled by lora_alpha / lora_rank; published: 32.
        lora_dropout: Dropout before the LoRA updates; published: 0.
        schedule: Learning rate after warm-up; `wsd` stays at the peak, then decays linearly.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay_steps: Length of the decay of `wsd` in steps; by default a tenth of all steps.
        final_learning_rate: Final learning rate of `cosine` and `wsd`, as a fraction of the peak.
        weight_decay: Weight decay of weight matrices; embeddings, norms and biases have none.
        adam_beta1: Decay of Adam's first moment.
        adam_beta2: Decay of Adam's second moment.
        gradient_norm: Largest norm of the gradient; larger ones are clipped.
        precision: bf16 (with fp32 master weights and accumulation) or fp32.
        zero_stage: ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 parameters too.
        deepspeed: DeepSpeed JSON file with further settings (offload, communication); it must not set batch sizes.
        seed: Seed of initialisation, order and dropout.
        workers: Threads that read and collate batches ahead.
        log_every: Steps between lines of metrics.
        wandb_project: Weights & Biases project for metrics and predictions; WANDB_* variables set the rest.
        evaluate_every: Steps between evaluations on held-out clips; the last step is always evaluated.
        evaluate_clips: Largest number of held-out clips per data set in an evaluation.
        evaluate_predictions: Held-out clips to predict and animate at each evaluation; needs the tokenizer.
        checkpoint_every: Checkpointing interval in steps.
        keep_checkpoints: Number of newest checkpoints to keep.
        keep_every: Keep checkpoints of every multiple of this many steps for good; 0 = none.
        nonfinite_limit: Stop after this many steps in a row whose loss or gradient is not finite; such steps are skipped.
        compile: Compile the model.
        splits: Splits of the token shards to train on.
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
        check_bounds("training", self, TRAINING_BOUNDS)
        require(
            self.lora_rank == 0 or self.init_from is not None,
            "training.lora_rank needs a trained model: set training.init_from, or set training.lora_rank to 0",
        )
        require(
            self.keep_every % self.checkpoint_every == 0,
            f"training.keep_every must be 0 or a multiple of training.checkpoint_every {self.checkpoint_every}, "
            f"not {self.keep_every}",
        )
        require(
            len(self.splits) > 0 and all(self.splits),
            f"training.splits must name one or more splits of the token shards, not {list(self.splits)}",
        )
