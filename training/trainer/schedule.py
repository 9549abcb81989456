"""What follows from a step's number alone: its learning rate, its samples, its random seed. Pure functions.

Nothing here has state, so a resumed run needs the step's number and nothing else, and no scheduler to save and restore.
"""

import hashlib
import math
from dataclasses import dataclass

from pipeline.common.errors import ConfigError
from pipeline.config.model import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of step number `step`, counted from 0.

    Linear warm-up that reaches the peak at step `warmup_steps`. Then constant; or half a cosine that would reach
    `final_learning_rate` x peak at step `steps` (Loshchilov and Hutter 2016, without restarts); or constant with a linear
    decay to there over the last `decay_steps` (warmup-stable-decay: Hu et al. 2024, "MiniCPM").
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


@dataclass(frozen=True)
class BatchPlan:
    """How a step's samples are cut up among processes and forward passes.

    Step s reads samples `s * global_batch` onwards; each rank takes a contiguous slice of them, each micro step a
    contiguous slice of that.

    Attributes:
        global_batch: Samples of a step.
        micro_batch: Samples of one forward pass of one process.
        accumulation: Forward passes of a step in each process.
        world_size: Processes.
        rank: Of this process.
    """

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int
    rank: int

    def first_sample(self, step: int, micro_step: int) -> int:
        """Number of the first of the `micro_batch` samples of a micro step of this rank."""
        return step * self.global_batch + (self.rank * self.accumulation + micro_step) * self.micro_batch


def plan_batches(config: TrainingConfig, world_size: int, rank: int) -> BatchPlan:
    """The plan for a number of processes: global_batch = micro_batch x accumulation x world_size.

    Raises:
        ConfigError: The sizes don't divide; the message says which micro batches would do.
    """
    per_rank, rest = divmod(config.global_batch, world_size)
    if rest or not per_rank:
        raise ConfigError(
            f"training.global_batch {config.global_batch} can't be shared equally by {world_size} processes: choose a "
            f"multiple of {world_size}, or another number of processes"
        )
    micro = per_rank if config.micro_batch is None else config.micro_batch
    if micro < 1 or per_rank % micro:
        fitting = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
        raise ConfigError(
            f"training.micro_batch {micro} must divide training.global_batch / processes = {config.global_batch} / "
            f"{world_size} = {per_rank}: choose one of {', '.join(map(str, fitting))}"
        )
    return BatchPlan(config.global_batch, micro, per_rank // micro, world_size, rank)


def dropout_seed(seed: int, step: int, micro_step: int, rank: int) -> int:
    """The seed of the randomness inside one forward pass: 63 bits, unrelated for any two passes."""
    digest = hashlib.sha256(repr(("dropout", seed, step, micro_step, rank)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
