"""Splits the samples of a step among processes and forward passes."""

from dataclasses import dataclass

from pipeline.common.errors import ConfigError
from pipeline.config.model import TrainingConfig


@dataclass(frozen=True)
class BatchPlan:
    """How a step's samples are split among processes and forward passes.

    Step s reads samples from `s * global_batch` on. Each rank takes a contiguous slice of them, and each micro step a
    contiguous slice of that.

    Attributes:
        global_batch: Samples of a step.
        micro_batch: Samples of one forward pass of one process.
        accumulation: Forward passes of a step in each process.
        world_size: Number of processes.
        rank: Rank of this process.
    """

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int
    rank: int

    def first_sample(self, step: int, micro_step: int) -> int:
        """Returns the number of the first sample of a micro step of this rank."""
        return step * self.global_batch + (self.rank * self.accumulation + micro_step) * self.micro_batch


def plan_batches(config: TrainingConfig, world_size: int, rank: int) -> BatchPlan:
    """Returns the plan for a number of processes: global_batch = micro_batch x accumulation x world_size.

    Raises:
        ConfigError: The sizes don't divide; the message lists valid micro batches.
    """
    per_rank, rest = divmod(config.global_batch, world_size)
    if rest or not per_rank:
        raise ConfigError(
            f"training.global_batch {config.global_batch} can't be divided by {world_size} processes: choose a "
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
