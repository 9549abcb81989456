"""The processes that share the shards: who is in the fleet, and which shard is next.

Shards are claimed one at a time from a counter in the launcher's key-value store, so fast and slow processes both stay busy
and there is no collective operation to hang in. Started alone, a process is a fleet of one with a store of its own.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.rendezvous import rendezvous

Task = TypeVar("Task")
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Fleet:
    """The processes started together by accelerate launch, torchrun, or anything else that sets RANK and WORLD_SIZE.

    Attributes:
        rank: Of this process, from 0.
        size: Processes in all.
        local_size: Processes on this machine.
        device: Where this process's model runs.
        store: Key-value store that all processes share.
    """

    rank: int
    size: int
    local_size: int
    device: torch.device
    store: dist.Store

    @classmethod
    @contextlib.contextmanager
    def join(cls) -> Iterator[Self]:
        """Be part of the fleet for the length of a block."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            yield cls(0, 1, 1, PartialState().device, dist.HashStore())
            return
        store, rank, size = next(rendezvous("env://"))
        state = PartialState(store=dist.PrefixStore("group", store), rank=rank, world_size=size)
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        try:
            yield cls(rank, size, local_size, state.device, dist.PrefixStore("tokenize", store))
        finally:
            state.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process plans, shows progress and reports."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """Processor cores that are this process's share."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)

    def tell(self, plan: Any) -> None:
        """Give all other processes the plan, any value that JSON holds."""
        self.store.set("plan", json.dumps(plan))

    def hear(self) -> Any:
        """The plan that the first process gave; waits for it."""
        return json.loads(self.store.get("plan"))

    def claim(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Tasks that no other process has; each is claimed when it is asked for."""
        while (number := self.store.add("claimed", 1) - 1) < len(tasks):
            yield tasks[number]

    def count(self, units: int) -> int:
        """Add `units` of finished work; returns the whole fleet's sum."""
        return int(self.store.add("units", units))

    def report(self, result: Any) -> None:
        """Leave this process's result, any value that JSON holds, for the first one. Nothing of the fleet is used after it."""
        self.store.set(f"result {self.rank}", json.dumps(result))
        self.store.add("finished", 1)

    def reports(self, while_waiting: Callable[[], None]) -> list[Any]:
        """The results of all processes, by rank; waits until they are there. For the first process, after its own `report`.

        A process that died without a result is the launcher's to notice: torchrun and accelerate end the others then.
        """
        while self.store.add("finished", 0) < self.size:
            while_waiting()
            time.sleep(_POLL_SECONDS)
        return [json.loads(self.store.get(f"result {rank}")) for rank in range(self.size)]
