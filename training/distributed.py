"""The processes of a run: which one this is, before any process group exists, and the group itself.

Ranks come from the environment of whatever launched the processes, so that everything that can be wrong with the input is
found before processes wait for each other. Collectives on small host values have a gloo group of their own: they never make
a GPU wait.
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
# A save to slow storage holds the other ranks up, so more than torch's own 10 minutes.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class RankInfo:
    """Where this process stands among all.

    Attributes:
        rank: From 0, over all nodes.
        world_size: Number of processes.
        local_rank: From 0, on this node.
        local_world_size: Processes on this node.
        variables: Of the environment, for whoever reads ranks from there.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    variables: Mapping[str, str]


def find_rank_info(environment: Mapping[str, str]) -> RankInfo:
    """Read this process's place from what torchrun, deepspeed, accelerate launch or srun set; without any it is alone.

    Raises:
        ConfigError: The variables contradict each other or some are missing.
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
    """On which a process computes: the GPU of its rank on this node, or the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


class Processes:
    """The process group of a run. Form it once, as a context.

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
            # torchrun allows one thread each, the other launchers all cores to each; alone, OMP_NUM_THREADS decides.
            torch.set_num_threads(max(1, usable_cpus() // self.rank_info.local_world_size))
        else:
            # torch counts the machine's cores, a container may have fewer.
            torch.set_num_threads(min(torch.get_num_threads(), usable_cpus()))
        # A process that is alone needs no port, so runs side by side on a machine can't meet on one.
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
        # A training engine takes the group with it when it is closed; after an error its own groups go too.
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
        """Wait until all processes are here."""
        dist.barrier(group=self._host_group)

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all get the same answer."""
        return self.sum(float(flag)) > 0

    def sum(self, value: float) -> float:
        """The sum of a host value over all processes, equal everywhere."""
        return sum(self.gather(value))

    def ranks_that_differ(self, digest: str) -> list[int]:
        """The ranks that hold another digest than rank 0; all get the same answer.

        Args:
            digest: 16 hex digits.
        """
        halves = torch.tensor([int(digest[:8], 16), int(digest[8:16], 16)])
        parts = self.gather_tensor(halves)
        return [rank for rank, part in enumerate(parts) if not torch.equal(part, parts[0])]

    def gather(self, value: float) -> list[float]:
        """A host value of every process, by rank."""
        if self.world_size == 1:
            return [value]
        parts = [torch.zeros(1, dtype=torch.float64) for _ in range(self.world_size)]
        dist.all_gather(parts, torch.tensor([value], dtype=torch.float64), group=self._host_group)
        return [float(part) for part in parts]

    def gather_objects(self, value: T) -> list[T]:
        """A small value of every process, by rank; anything that can be pickled."""
        if self.world_size == 1:
            return [value]
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value, group=self._host_group)
        return parts

    def gather_tensor(self, value: torch.Tensor) -> list[torch.Tensor]:
        """A host tensor of every process, by rank; all of the same shape and type."""
        if self.world_size == 1:
            return [value]
        parts = [torch.empty_like(value) for _ in range(self.world_size)]
        dist.all_gather(parts, value.contiguous(), group=self._host_group)
        return parts
