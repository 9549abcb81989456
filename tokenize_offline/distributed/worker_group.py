"""Connects the processes of a fleet: shares the plan, hands out shards, and collects results.

Processes claim shards one at a time from a counter in the launcher's key-value store, so fast and slow processes both stay
busy, and no collective operation can hang. A process started alone is a fleet of one with a local store.

torchrun keeps its store across restarts, with the keys of earlier processes. So the first process creates a random name for
each generation of processes and sends it to those that ask; all keys of a generation start with that name.

The first process does not wait for lost processes (`heartbeat`): it makes the shards that they left.
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
from tokenize_offline.distributed.heartbeat import HeartbeatMonitor, heartbeats, sending_heartbeats

Task = TypeVar("Task")
_POLL_SECONDS = 0.2
# The store of torch 2.13 closes the connection if a value is larger than 8 MiB.
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Fleet:
    """The processes started together by accelerate launch, torchrun, srun, or anything else that sets RANK and WORLD_SIZE.

    Attributes:
        rank: Rank of this process, from 0.
        size: Number of processes.
        local_size: Number of processes on this machine.
        device: Device of this process's model.
        store: Key-value store that all processes share.
        claims: Indices of the tasks that this process claimed.
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
        """Join the fleet while the block runs.

        Raises:
            ConfigError: An environment variable of the launcher is missing or invalid.
            ProjectError: The process that hosts the store is lost.
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
            with _generation(store, rank, size) as generation, sending_heartbeats(generation, rank):
                yield cls(rank, size, local_size, device, generation)
        except dist.DistError as error:
            raise ProjectError(
                f"process {os.environ.get('RANK')} lost the fleet's store ({str(error).splitlines()[0]}): the process that "
                "hosts it ended. Run the same command again to resume"
            ) from error

    @property
    def is_first(self) -> bool:
        """Whether this process plans, shows progress and prints the summary."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """CPU cores for this process: an equal share of the machine's."""
        return max(1, usable_cpus() // self.local_size)

    def broadcast_plan(self, plan: Any) -> None:
        """Send the plan, a JSON value of any size, to all other processes."""
        _put(self.store, "plan", plan)

    def receive_plan(self) -> Any:
        """Wait for the plan of the first process and return it."""
        # Polls, because a blocking `get` would block this process's heartbeats too.
        while not self.store.check(["plan"]):
            time.sleep(_POLL_SECONDS)
        return _get(self.store, "plan")

    def claim(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Iterate over tasks that no other process has; each is claimed when it is requested."""
        while (number := self.store.add("claimed", 1) - 1) < len(tasks):
            self.claims.append(number)
            yield tasks[number]

    def add_to_counter(self, name: str, amount: int) -> int:
        """Add to a counter of the fleet and return its new value."""
        return int(self.store.add(f"counter/{name}", amount))

    def send_result(self, result: Any) -> None:
        """Send this process's result, a JSON value, to the first process. Other processes must not use the fleet afterwards."""
        _put(self.store, f"result/{self.rank}", {"result": result, "claims": self.claims})

    def collect_results(self, tasks: Sequence[Task], while_waiting: Callable[[], None]) -> tuple[list[Any], list[Task]]:
        """Wait for the results of all processes that are alive. The first process calls it, after its own `send_result`.

        Args:
            tasks: The tasks that were given to `claim`.
            while_waiting: Called repeatedly while waiting.

        Returns:
            The results in order of rank, and the tasks that lost processes claimed, some of which may be done.
        """
        monitor, checked = HeartbeatMonitor(), time.monotonic()
        silent: set[int] = set()
        while missing := {rank for rank in range(self.size) if not self.store.check([f"result/{rank}"])}:
            if time.monotonic() - checked > monitor.interval:
                checked = time.monotonic()
                silent = monitor.silent({rank: heartbeats(self.store, rank) for rank in missing})
            if missing <= silent:
                break
            while_waiting()
            time.sleep(_POLL_SECONDS)
        received = [_get(self.store, f"result/{rank}") for rank in range(self.size) if rank not in missing]
        claimed = {number for entry in received for number in entry["claims"]}
        orphans = [task for number, task in enumerate(tasks) if number not in claimed]
        return [entry["result"] for entry in received], orphans


def _put(store: dist.Store, key: str, value: Any) -> None:
    """Store a JSON value of any size in chunks. The key itself holds their number and is written last."""
    data = base64.b64encode(zlib.compress(json.dumps(value).encode(), 1)).decode()
    chunks = [data[start : start + _CHUNK_BYTES] for start in range(0, len(data), _CHUNK_BYTES)]
    for number, chunk in enumerate(chunks):
        store.set(f"{key}/{number}", chunk)
    store.set(key, str(len(chunks)))


def _get(store: dist.Store, key: str) -> Any:
    """The value that `_put` stored under `key`, which must exist."""
    chunks = [store.get(f"{key}/{number}") for number in range(int(store.get(key)))]
    return json.loads(zlib.decompress(base64.b64decode(b"".join(chunks))))


def _device(local_rank: int) -> torch.device:
    """This process's accelerator, or the CPU if there is none."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return torch.device("cpu")
    device = torch.device(kind.type, local_rank % torch.accelerator.device_count())
    torch.accelerator.set_device_index(device)
    return device


@contextlib.contextmanager
def _generation(store: dist.Store, rank: int, size: int) -> Iterator[dist.Store]:
    """The part of the store that belongs to the processes of this generation."""
    if rank == 0:
        name = uuid.uuid4().hex
        generation = dist.PrefixStore(name, store)
        stopped = threading.Event()
        arguments = (store, generation, name, size, stopped)
        registrar = threading.Thread(target=_answer_requests, args=arguments, name="registrar", daemon=True)
        registrar.start()
        try:
            yield generation
        finally:
            stopped.set()
            registrar.join()
        return
    request = uuid.uuid4().hex
    store.set(f"request/{store.add('requests', 1)}", request)
    generation = dist.PrefixStore(store.get(f"generation/{request}").decode(), store)
    generation.add("joined", 1)
    yield generation


def _answer_requests(store: dist.Store, generation: dist.Store, name: str, size: int, stopped: threading.Event) -> None:
    """Send the generation's name to every process that asks, until all have joined.

    It also answers requests of earlier generations, whose processes have ended; nobody reads those answers.
    """
    answered: set[int] = set()
    while generation.add("joined", 0) < size - 1 and not stopped.wait(_POLL_SECONDS):
        for number in set(range(1, store.add("requests", 0) + 1)) - answered:
            # A process may have ended between taking its number and writing its request.
            if store.check([f"request/{number}"]):
                store.set(f"generation/{store.get(f'request/{number}').decode()}", name)
                answered.add(number)
