"""Bounds of the recipe's numbers, one table per section. A value out of bounds is an error that names the key.

NaN and infinity are within no bounds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pipeline.common.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# torch takes seeds of 64 bits, signed; code that needs fewer bits hashes the seed.
_LARGEST_SEED = 2**63 - 1
# Larger than any real size, and so small that a product of two fits 64 bits.
_LARGEST_SIZE = 1 << 20
# Counts of steps and samples fit 64 bits.
_LARGEST_COUNT = 1 << 40
# Tokens have 16 bits, and two of them mark starts of frames.
MAX_CODES = (1 << 16) - 2


@dataclass(frozen=True)
class Bounds:
    """An interval.

    Attributes:
        low: Lower bound.
        high: Upper bound; infinity means none, and is itself excluded.
        open_low: Excludes `low` itself.
        open_high: Excludes `high` itself.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def contains(self, number: float) -> bool:
        """Whether a number is within the bounds."""
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high or self.high == math.inf else number <= self.high
        return above and below

    def requirement(self, number: float) -> str:
        """Says what a number that is out of bounds must be."""
        least = f"above {self.low}" if self.open_low else f"at least {self.low}"
        most = f"below {self.high}" if self.open_high else f"at most {self.high}"
        if not math.isfinite(number):
            return f"finite and {least}" if self.high == math.inf else f"{least} and {most}"
        return most if number >= self.high else least


_SIZE = Bounds(1, _LARGEST_SIZE)
_COUNT = Bounds(1, _LARGEST_COUNT)
_COUNT_OR_ZERO = Bounds(0, _LARGEST_COUNT)
_WEIGHT = Bounds(0)
_POSITIVE = Bounds(0, open_low=True)
_SHARE = Bounds(0, 1)
_SHARE_BELOW_ONE = Bounds(0, 1, open_high=True)

DATA_BOUNDS = {
    "weights": _POSITIVE,
    "resolution": Bounds(8, 4096),
    "jpeg_quality": Bounds(1, 100),
    "shard_mib": _SIZE,
}
CLIPS_BOUNDS = {
    "length": Bounds(2, _SIZE.high),
    "context_length": _SIZE,
    "per_episode": _SIZE,
    "views": Bounds(1, 32767),
    "held_out": _SHARE_BELOW_ONE,
    "crop_scale": Bounds(0, 1, open_low=True),
    "crop_ratio": _POSITIVE,
    "brightness": _WEIGHT,
    "contrast": _WEIGHT,
    "saturation": _WEIGHT,
    "hue": Bounds(0, 0.5),
    "seed": Bounds(-_LARGEST_SEED, _LARGEST_SEED),
}
QUALITY_BOUNDS = {
    "max_static": _SHARE,
    "max_uniform": _SHARE,
    "max_repeated": _SHARE,
    "max_swap_score": Bounds(-1, 1),
    "near_bits": Bounds(0, 200),
}
TOKENIZER_BOUNDS = {
    "resolution": Bounds(8, 4096),
    "context_length": _SIZE,
    "block_out_channels": _SIZE,
    "layers_per_block": Bounds(1, 64),
    "latent_channels": _SIZE,
    "num_vq_embeddings": Bounds(1, MAX_CODES),
    "num_dyn_embeddings": Bounds(1, MAX_CODES),
    "patch_size": _SIZE,
    "max_att_resolution": _SIZE,
    "segment_length": _SIZE,
    "horizon": _SIZE,
    "steps": _COUNT,
    "batch_size": _SIZE,
    "learning_rate": _POSITIVE,
    "warmup_steps": _COUNT_OR_ZERO,
    "l1_weight": _WEIGHT,
    "l2_weight": _WEIGHT,
    "lpips_weight": _WEIGHT,
    "disc_weight": _WEIGHT,
    "disc_start": _COUNT_OR_ZERO,
    "disc_learning_rate": _POSITIVE,
    "commitment_weight": _WEIGHT,
    "static_patch_weight": _WEIGHT,
    "ema_decay": _SHARE_BELOW_ONE,
    "dead_code_reset_every": _COUNT_OR_ZERO,
    "quantize_warmup": _COUNT_OR_ZERO,
    "seed": Bounds(0, _LARGEST_SEED),
    "log_every": _COUNT,
    "checkpoint_every": _COUNT,
    "clips_per_batch": _SIZE,
}
MODEL_BOUNDS = {
    "layers": Bounds(1, 1024),
    "heads": _SIZE,
    "width": _SIZE,
    "mlp_width": _SIZE,
    "positions": _SIZE,
    "attention_dropout": _SHARE_BELOW_ONE,
    "reward_weight": _POSITIVE,
    "action_reconstruction": _WEIGHT,
}
TRAINING_BOUNDS = {
    "global_batch": _SIZE,
    "micro_batch": _SIZE,
    "steps": _COUNT,
    "learning_rate": _POSITIVE,
    "lora_rank": Bounds(0, _SIZE.high),
    "lora_alpha": _POSITIVE,
    "lora_dropout": _SHARE_BELOW_ONE,
    "warmup_steps": _COUNT_OR_ZERO,
    "decay_steps": _COUNT,
    "final_learning_rate": _SHARE,
    "weight_decay": _WEIGHT,
    "adam_beta1": _SHARE_BELOW_ONE,
    "adam_beta2": _SHARE_BELOW_ONE,
    "gradient_norm": _WEIGHT,
    "zero_stage": Bounds(0, 3),
    "seed": Bounds(-_LARGEST_SEED, _LARGEST_SEED),
    "workers": Bounds(0, 1024),
    "log_every": _COUNT,
    "evaluate_every": _COUNT,
    "evaluate_clips": _COUNT,
    "evaluate_predictions": _COUNT_OR_ZERO,
    "checkpoint_every": _COUNT,
    "keep_checkpoints": _COUNT,
    "keep_every": _COUNT_OR_ZERO,
    "nonfinite_limit": _COUNT,
}
# In frames or in seconds.
STRIDE = Bounds(0, 1e6, open_low=True)


def check_bounds(section: str, values: "DataclassInstance", bounds: Mapping[str, Bounds]) -> None:
    """Checks the numbers of a recipe section against their bounds.

    Args:
        section: Name of the section, for messages.
        values: The section, a dataclass. Checks each number of a list and of a mapping's values; None passes.
        bounds: Key -> its bounds. Keys without bounds pass.

    Raises:
        ConfigError: A number is out of bounds; the message names the key, the bound and the value.
    """
    for field in fields(values):
        if field.name not in bounds:
            continue
        value, allowed = getattr(values, field.name), bounds[field.name]
        numbers = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        for number in numbers:
            if number is not None and not allowed.contains(number):
                raise ConfigError(f"{section}.{field.name} must be {allowed.requirement(number)}, not {value}")
