"""Forms the process group of a run, and tells which process this one is before the group exists.

Ranks come from the environment of the launcher, so invalid input is found before processes wait for each other. Collectives on
small host values have their own gloo group: they never make a GPU wait.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.common.errors import ConfigError
from pipeline.processes.cpus import usable_cpus
from tokenize_offline.distributed.env import environment_number, slurm_variables
from training.compat import restored_linear

T = TypeVar("T")
# Saving to slow storage makes other ranks wait, so longer than torch's default of 10 minutes.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class RankInfo:
    """Position of this process among all processes.

    Attributes:
        rank: Rank over all nodes, from 0.
        world_size: Number of processes.
        local_rank: Rank on this node, from 0.
        local_world_size: Number of processes on this node.
        variables: Environment variables with these numbers, for libraries that read them there.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    variables: Mapping[str, str]


def find_rank_info(environment: Mapping[str, str]) -> RankInfo:
    """Reads this process's ranks from the variables of torchrun, deepspeed, accelerate launch or srun; without any it is alone.

    Raises:
        ConfigError: Some variables are missing or contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    source = {**environment, **slurm_variables(environment)}
    if "RANK" not in source:
        return RankInfo(0, 1, 0, 1, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    missing = [name for name in names if name not in source]
    if missing:
        raise ConfigError(
            f"RANK is set but {', '.join(missing)} is not: start with torchrun, deepspeed, accelerate launch or srun, "
            "or unset RANK to run alone"
        )
    rank, world_size, local_rank = (environment_number(source, name) for name in names[:3])
    environment_number(source, "MASTER_PORT", least=1)
    local_size = environment_number(source, "LOCAL_SIZE", world_size, least=1)
    local_world_size = environment_number(source, "LOCAL_WORLD_SIZE", local_size, least=1)
    if not 0 <= local_rank <= rank < world_size:
        raise ConfigError(f"LOCAL_RANK {local_rank}, RANK {rank} and WORLD_SIZE {world_size} contradict each other")
    return RankInfo(rank, world_size, local_rank, local_world_size, {name: source[name] for name in names})


def local_device(local_rank: int = 0) -> torch.device:
    """Returns the device of a process: the GPU of its local rank, or the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


class Processes:
    """Process group of a run. Form it once, as a context.

    Attributes:
        rank_info: Ranks of this process.
        device: Device of this process.
    """

    def __init__(self, rank_info: RankInfo) -> None:
        self.rank_info = rank_info
        self.device = local_device(rank_info.local_rank)

    def __enter__(self) -> "Processes":
        self._environment = {name: os.environ.get(name) for name in self.rank_info.variables}
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(restored_linear())
        os.environ.update(self.rank_info.variables)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        elif self.world_size > 1:
            # torchrun sets one thread per process, other launchers all cores; without one OMP_NUM_THREADS decides.
            torch.set_num_threads(max(1, usable_cpus() // self.rank_info.local_world_size))
        else:
            # torch counts the machine's cores, but a container may have fewer.
            torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
        # A single process needs no port, so several runs on a machine can't conflict.
        store = dist.HashStore() if self.world_size == 1 else None
        dist.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo",
            store=store,
            rank=self.rank if store else -1,
            world_size=self.world_size if store else -1,
            timeout=_TIMEOUT,
            device_id=self.device if self.device.type == "cuda" else None,
        )
        self._host_group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        return self

    def __exit__(self, *_: object) -> None:
        # A closed training engine has already destroyed the group; after an error its groups are left.
        engine_groups = sys.modules.get("deepspeed.comm")
        if engine_groups is not None and engine_groups.is_initialized():
            engine_groups.destroy_process_group()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._stack.close()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    @property
    def rank(self) -> int:
        """Rank of this process, from 0."""
        return self.rank_info.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.rank_info.world_size

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all processes."""
        dist.barrier(group=self._host_group)

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set on any process; all get the same answer."""
        return self.sum(float(flag)) > 0

    def sum(self, value: float) -> float:
        """Returns the sum of a host value over all processes, the same on all."""
        return sum(self.gather(value))

    def ranks_that_differ(self, digest: str) -> list[int]:
        """Returns the ranks whose digest differs from rank 0's; all get the same answer.

        Args:
            digest: 16 hex digits.
        """
        halves = torch.tensor([int(digest[:8], 16), int(digest[8:16], 16)])
        parts = self.gather_tensor(halves)
        return [rank for rank, part in enumerate(parts) if not torch.equal(part, parts[0])]

    def gather(self, value: float) -> list[float]:
        """Returns a host value of every process, by rank."""
        if self.world_size == 1:
            return [value]
        parts = [torch.zeros(1, dtype=torch.float64) for _ in range(self.world_size)]
        dist.all_gather(parts, torch.tensor([value], dtype=torch.float64), group=self._host_group)
        return [float(part) for part in parts]

    def gather_objects(self, value: T) -> list[T]:
        """Returns a small object of every process, by rank; it must be picklable."""
        if self.world_size == 1:
            return [value]
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value, group=self._host_group)
        return parts

    def gather_tensor(self, value: torch.Tensor) -> list[torch.Tensor]:
        """Returns a host tensor of every process, by rank; all must have the same shape and type."""
        if self.world_size == 1:
            return [value]
        parts = [torch.empty_like(value) for _ in range(self.world_size)]
        dist.all_gather(parts, value.contiguous(), group=self._host_group)
        return parts
