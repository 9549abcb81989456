"""Computes what follows from a step's number: its learning rate and its random seed.

These are pure functions, so a resumed run needs only the step's number, and no scheduler to save and restore.
"""

import hashlib
import math

from pipeline.config.model import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Returns the learning rate of step number `step`, counted from 0.

    Linear warm-up that reaches the peak at step `warmup_steps`. Then constant; or half a cosine that would reach
    `final_learning_rate` x peak at step `steps` (Loshchilov and Hutter 2016, without restarts); or constant with a linear decay
    to that value over the last `decay_steps` (warmup-stable-decay: Hu et al. 2024, "MiniCPM").
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return config.learning_rate
    begin = config.warmup_steps
    if config.schedule == "wsd":
        begin = max(begin, config.steps - (config.decay_steps or -(-config.steps // 10)))
    progress = min(1.0, max(0, step - begin) / max(1, config.steps - begin))
    left = 1 - progress if config.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * left)


def dropout_seed(seed: int, step: int, micro_step: int, rank: int) -> int:
    """Returns the random seed of one forward pass: 63 bits, unrelated for any two passes."""
    digest = hashlib.sha256(repr(("dropout", seed, step, micro_step, rank)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
