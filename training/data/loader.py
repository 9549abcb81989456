"""Reads the next micro batches ahead of the training loop, in exact order.

It uses threads, not processes: reading a clip is a copy from a memory map, so a batch of 64 takes well under a millisecond,
less than sending it between processes. Batches for CUDA are pinned, so that their transfer overlaps with the step.
"""

import collections
import time
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from training.data.batch_plan import BatchPlan
from training.data.sampler import SampleOrder
from training.data.token_dataset import Clips, TokenStore

_AHEAD = 4  # micro batches in flight per thread


class Batch(NamedTuple):
    """Clips in the form that the network takes.

    Attributes:
        ids: (B, L) int64 tokens.
        action: (B, T, A) float32, or None.
        reward: (B, T) float32, or None.
    """

    ids: torch.Tensor
    action: torch.Tensor | None
    reward: torch.Tensor | None

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on a device; the copy of a pinned batch is asynchronous."""
        action = None if self.action is None else self.action.to(device, non_blocking=True)
        reward = None if self.reward is None else self.reward.to(device, non_blocking=True)
        return Batch(self.ids.to(device, non_blocking=True), action, reward)

    def pinned(self) -> "Batch":
        """Returns the batch in page-locked memory."""
        action = None if self.action is None else self.action.pin_memory()
        reward = None if self.reward is None else self.reward.pin_memory()
        return Batch(self.ids.pin_memory(), action, reward)


def as_batch(clips: Clips) -> Batch:
    """Returns rows of a store as tensors in host memory."""
    action = None if clips.action is None else torch.from_numpy(clips.action)
    reward = None if clips.reward is None else torch.from_numpy(clips.reward)
    return Batch(torch.from_numpy(clips.ids.astype(np.int64)), action, reward)


class BatchReader:
    """Reads samples of an order as batches.

    Args:
        store: Store of the clips.
        order: Maps sample numbers to clips.
        actions: Whether to read actions.
        rewards: Whether to read rewards.
        pinned: Whether to put batches in pinned memory.
    """

    def __init__(self, store: TokenStore, order: SampleOrder, actions: bool, rewards: bool, pinned: bool) -> None:
        self._store = store
        self._order = order
        self._columns = (actions, rewards)
        self._pinned = pinned

    def read(self, start: int, count: int) -> Batch:
        """Reads samples `start .. start + count - 1`."""
        dataset, rows = self._order.samples(start, count)
        batch = as_batch(self._store.read(self._order.datasets, dataset, rows, *self._columns))
        return batch.pinned() if self._pinned else batch


class BatchLoader:
    """Iterates over a rank's micro batches of a range of steps, `plan.accumulation` of them per step.

    Args:
        reader: Reads the batches.
        plan: Tells which samples they hold.
        steps: Steps to load.
        workers: Number of threads.

    Attributes:
        waited: Time that the training loop has waited for batches, in seconds.
    """

    def __init__(self, reader: BatchReader, plan: BatchPlan, steps: range, workers: int) -> None:
        self._reader = reader
        self._plan = plan
        self._steps = steps
        self._workers = max(1, workers)
        self.waited = 0.0

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yields the micro batches in order; threads stop when the iterator is closed or exhausted."""
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="batches")
        pending: collections.deque[Future[Batch]] = collections.deque()
        starts = (
            self._plan.first_sample(step, micro_step) for step in self._steps for micro_step in range(self._plan.accumulation)
        )
        try:
            for start in starts:
                pending.append(pool.submit(self._reader.read, start, self._plan.micro_batch))
                if len(pending) >= self._workers * _AHEAD:
                    yield self._next(pending)
            while pending:
                yield self._next(pending)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _next(self, pending: "collections.deque[Future[Batch]]") -> Batch:
        began = time.perf_counter()
        batch = pending.popleft().result()
        self.waited += time.perf_counter() - began
        return batch
