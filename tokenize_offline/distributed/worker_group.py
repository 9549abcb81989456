"""The processes that share the shards: who is in the fleet, and which shard is next.

Shards are claimed one at a time from a counter in the launcher's key-value store, so fast and slow processes both stay busy
and there is no collective operation to hang in. Started alone, a process is a fleet of one with a store of its own.

torchrun keeps one store through its restarts, with all that earlier processes left in it. So the first process gives every
generation a name of its own, and tells it to those that ask; all keys of a generation carry that name.

A process that falls silent (`pulse`) is not waited for: the first one makes what nobody else accounts for.
"""

import base64
import contextlib
import json
import os
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from pipeline.common.errors import ConfigError, ProjectError
from pipeline.processes.cpus import usable_cpus
from tokenize_offline.distributed.env import environment_number, slurm_variables
from tokenize_offline.distributed.heartbeat import HeartbeatMonitor, sending_heartbeats

Task = TypeVar("Task")
_POLL_SECONDS = 0.2
# The store of torch 2.13 cuts the connection of whoever sends it a value above 8 MiB.
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Fleet:
    """The processes started together by accelerate launch, torchrun, srun, or anything else that sets RANK and WORLD_SIZE.

    Attributes:
        rank: Of this process, from 0.
        size: Processes in all.
        local_size: Processes on this machine.
        device: Where this process's model runs.
        store: Key-value store that all processes share.
        claims: Numbers of the tasks that this process claimed.
    """

    rank: int
    size: int
    local_size: int
    device: torch.device
    store: dist.Store
    claims: list[int] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def join(cls) -> Iterator[Self]:
        """Be part of the fleet for the length of a block.

        Raises:
            ConfigError: What a launcher sets is missing or makes no sense.
            ProjectError: The process that keeps the store is gone.
        """
        os.environ.update(slurm_variables(os.environ))
        size = environment_number(os.environ, "WORLD_SIZE", 1, least=1)
        local_size = environment_number(os.environ, "LOCAL_WORLD_SIZE", size, least=1)
        device = _device(environment_number(os.environ, "LOCAL_RANK", 0))
        if size == 1:
            yield cls(0, 1, 1, device, dist.HashStore())
            return
        rank = environment_number(os.environ, "RANK")
        if rank >= size:
            raise ConfigError(f"RANK {rank} must be below WORLD_SIZE {size}: start with torchrun, accelerate launch or srun")
        environment_number(os.environ, "MASTER_PORT", least=1)
        if not os.environ.get("MASTER_ADDR"):
            raise ConfigError(
                f"WORLD_SIZE is {size} but MASTER_ADDR is not set: start with torchrun, accelerate launch or srun"
            )
        try:
            store, rank, size = next(rendezvous("env://"))
            with _generation(store, rank, size) as own, sending_heartbeats(own, rank):
                yield cls(rank, size, local_size, device, own)
        except dist.DistError as error:
            raise ProjectError(
                f"process {os.environ.get('RANK')} lost the fleet's store ({str(error).splitlines()[0]}): the process that "
                "keeps it is gone. Run the same command again to go on"
            ) from error

    @property
    def is_first(self) -> bool:
        """Whether this process plans, shows progress and reports."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """Processor cores that are this process's share."""
        return max(1, usable_cpus() // self.local_size)

    def tell(self, plan: Any) -> None:
        """Give all other processes the plan, any value that JSON holds, of any size."""
        _put(self.store, "plan", plan)

    def hear(self) -> Any:
        """The plan that the first process gave; waits for it."""
        # Not by a `get` that waits: it would keep this process's beats from the store.
        while not self.store.check(["plan"]):
            time.sleep(_POLL_SECONDS)
        return _take(self.store, "plan")

    def claim(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Tasks that no other process has; each is claimed when it is asked for."""
        while (number := self.store.add("claimed", 1) - 1) < len(tasks):
            self.claims.append(number)
            yield tasks[number]

    def count(self, what: str, units: int) -> int:
        """Add `units` of something; returns the whole fleet's sum."""
        return int(self.store.add(f"count of {what}", units))

    def report(self, result: Any) -> None:
        """Leave this process's result, any value that JSON holds, for the first one. Nothing of the fleet is used after it."""
        _put(self.store, f"result {self.rank}", {"result": result, "claims": self.claims})

    def reports(self, tasks: Sequence[Task], while_waiting: Callable[[], None]) -> tuple[list[Any], list[Task]]:
        """Wait for all processes that are still there. For the first process, after its own `report`.

        Args:
            tasks: Those that were given to `claim`.
            while_waiting: Called again and again.

        Returns:
            The results by rank, and the tasks that processes claimed which are gone without one; they may be done or not.
        """
        listener, listened = HeartbeatMonitor(), time.monotonic()
        silent: set[int] = set()
        while missing := {rank for rank in range(self.size) if not self.store.check([f"result {rank}"])}:
            if time.monotonic() - listened > listener.interval:
                listened = time.monotonic()
                silent = listener.silent({rank: self.store.add(f"beats of {rank}", 0) for rank in missing})
            if missing <= silent:
                break
            while_waiting()
            time.sleep(_POLL_SECONDS)
        reports = [_take(self.store, f"result {rank}") for rank in range(self.size) if rank not in missing]
        accounted = {number for report in reports for number in report["claims"]}
        orphans = [task for number, task in enumerate(tasks) if number not in accounted]
        return [report["result"] for report in reports], orphans


def _put(store: dist.Store, key: str, value: Any) -> None:
    """Keep a value of any size: in pieces, and under its key their number, which comes last."""
    data = base64.b64encode(zlib.compress(json.dumps(value).encode(), 1)).decode()
    pieces = [data[start : start + _PIECE_BYTES] for start in range(0, len(data), _PIECE_BYTES)]
    for number, piece in enumerate(pieces):
        store.set(f"{key}, piece {number}", piece)
    store.set(key, str(len(pieces)))


def _take(store: dist.Store, key: str) -> Any:
    """The value that `_put` keeps under a key; it must be there."""
    pieces = [store.get(f"{key}, piece {number}") for number in range(int(store.get(key)))]
    return json.loads(zlib.decompress(base64.b64decode(b"".join(pieces))))


def _device(local_rank: int) -> torch.device:
    """This process's accelerator, or the CPU where there is none."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return torch.device("cpu")
    device = torch.device(kind.type, local_rank % torch.accelerator.device_count())
    torch.accelerator.set_device_index(device)
    return device


@contextlib.contextmanager
def _generation(store: dist.Store, rank: int, size: int) -> Iterator[dist.Store]:
    """The part of a store that belongs to the processes which run at the same time as this one."""
    if rank == 0:
        name = uuid.uuid4().hex
        own = dist.PrefixStore(name, store)
        stopped = threading.Event()
        registrar = threading.Thread(target=_register, args=(store, own, name, size, stopped), name="registrar", daemon=True)
        registrar.start()
        try:
            yield own
        finally:
            stopped.set()
            registrar.join()
        return
    asking = uuid.uuid4().hex
    store.set(f"arrival {store.add('arrivals', 1)}", asking)
    own = dist.PrefixStore(store.get(f"generation of {asking}").decode(), store)
    own.add("joined", 1)
    yield own


def _register(store: dist.Store, own: dist.Store, name: str, size: int, stopped: threading.Event) -> None:
    """Tell the generation's name to all that ask, until its last process has joined.

    Processes of generations before this one may have asked and died; an answer to them is heard by nobody.
    """
    answered: set[int] = set()
    while own.add("joined", 0) < size - 1 and not stopped.wait(_POLL_SECONDS):
        for number in set(range(1, store.add("arrivals", 0) + 1)) - answered:
            # A process may have died between taking its number and saying who it is.
            if store.check([f"arrival {number}"]):
                store.set(f"generation of {store.get(f'arrival {number}').decode()}", name)
                answered.add(number)
