"""The recipe's sections about networks: the tokenizer, the transformer, and the training of the transformer.

Without torch, like the others: see `pipeline.config.recipe`.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.common.errors import require
from pipeline.config.bounds import MAX_CODES, MODEL_BOUNDS, TOKENIZER_BOUNDS, TRAINING_BOUNDS, check_bounds

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
# Groups of every group normalisation in the tokenizer.
NORM_GROUPS = 32
# Frames of fewer pixels a side come to nothing in VGG16, which halves them four times, or in the discriminator.
_LPIPS_SIDE, _DISCRIMINATOR_SIDE = 16, 32


@dataclass(frozen=True)
class TokenizerShape:
    """Shape of a compressive VQ tokenizer. Defaults are the published 64x64 model.

    Attributes:
        resolution: Side of the square frames in pixels.
        context_length: Context frames t.
        block_out_channels: Channels of the blocks, from full resolution down.
        layers_per_block: Residual layers of an encoder block; a decoder block has one more.
        latent_channels: Width D of the latent and of a code.
        num_vq_embeddings: Codes for context frames.
        num_dyn_embeddings: Codes for future frames.
        patch_size: Latent positions along one side that share one future-frame code.
        max_att_resolution: Cross-attention happens at features of at most this side.
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
    """The tokenizer: its shape when it is trained from scratch, its training, and how it runs over shards.

    Attributes:
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
        vgg_weights: File with VGG16's weights, for the perceptual loss and for LPIPS of held-out clips. None takes what
            `ivideogpt-fetch-weights` brought, where the loss needs it.
        disc_weight: Of the adversarial loss, times the adaptive ratio of gradient norms; 0.8 as published, 0 trains without.
        disc_start: Step from which on there is an adversarial loss.
        disc_learning_rate: Of the discriminator's AdamW.
        balanced_loss: Whether the reconstruction and perceptual losses of context and future frames count by their share of
            a clip's frames, so that every frame weighs the same, in place of once each.
        commitment_weight: Of both commitment losses.
        static_patch_weight: Weight of the loss that gives all unchanged patches the same code; 0 = off, as published.
        local_attention: Whether cross-attention starts at the place that it looks from; as published, it starts everywhere. See
            `training.tokenizer_training.attention`.
        ema_decay: Decay of the running average of the weights that is evaluated and written; 0 takes the weights themselves.
        dead_code_reset_every: Steps between resets of rarely used codes to current features; 0 = off.
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
            f"tokenizer.block_out_channels halve it {halvings} times, and tokenizer.patch_size {self.patch_size} must divide "
            "the latent grid that is left",
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
            "tokenizer.l1_weight, tokenizer.l2_weight and tokenizer.lpips_weight are all 0, so that reconstructions count for "
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
        check_bounds("model", self, MODEL_BOUNDS)
        require(
            self.actions or not self.action_reconstruction,
            "model.action_reconstruction needs model.actions: turn that on, or set it to 0",
        )
        require(self.width % self.heads == 0, f"model.heads {self.heads} must divide model.width {self.width}")
        require(
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
        check_bounds("training", self, TRAINING_BOUNDS)
        require(
            self.lora_rank == 0 or self.init_from is not None,
            "training.lora_rank trains updates of a trained model: name that by training.init_from, or set it to 0",
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
