"""Prefetches results: a background thread reads items from an iterator, and a thread pool processes them, in order.

The queue is limited in items and in bytes, which limits memory: the source announces the size of an item before it reads it.
The consumer gets errors in the order of the items.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_STOP_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class ReserveBytes:
    """A source yields this before it reads an item, and continues when there is memory for it.

    Attributes:
        bytes: Memory of the item and its result in bytes.
    """

    bytes: int


class ByteBudget:
    """A limit on bytes in use. An amount above the limit is granted when nothing else is in use."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._changed = threading.Condition()

    def take(self, amount: int, stopped: threading.Event) -> None:
        """Wait until `amount` bytes are free, or until `stopped`, and take them."""
        with self._changed:
            while self._taken and self._taken + amount > self._limit and not stopped.is_set():
                self._changed.wait(_STOP_POLL_SECONDS)
            self._taken += amount

    def give_back(self, amount: int) -> None:
        """Free `amount` bytes."""
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()


class Prefetcher(Generic[Item, Result]):
    """Iterates over `process(item)` for the items of `source`, in order, computed in advance. Use it as a context manager."""

    def __init__(
        self, source: Iterator[Item | ReserveBytes], process: Callable[[Item], Result], threads: int, depth: int, budget: int
    ) -> None:
        """Create the threads; entering the context starts them.

        Args:
            source: Iterator of items, read in one background thread.
            process: Function called in the pool's threads.
            threads: Number of threads in the pool.
            depth: Maximum number of waiting results.
            budget: Maximum bytes in use, each counted from `ReserveBytes` until the consumer has the result.
        """
        self._queue: queue.Queue[tuple[Future[Result], int] | BaseException | None] = queue.Queue(depth)
        self._budget = ByteBudget(budget)
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(threads, "reader")
        self._process = process
        self._feeder = threading.Thread(target=self._feed, args=(source,), name="feeder", daemon=True)

    def __enter__(self) -> "Prefetcher[Item, Result]":
        self._feeder.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._feeder.join()
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Result]:
        while (entry := self._queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            future, amount = entry
            result = future.result()
            self._budget.give_back(amount)
            yield result

    def _feed(self, source: Iterator[Item | ReserveBytes]) -> None:
        reserved = 0
        try:
            for item in source:
                if isinstance(item, ReserveBytes):
                    self._budget.give_back(reserved)
                    reserved = item.bytes
                    self._budget.take(reserved, self._stopped)
                elif self._put((self._pool.submit(self._process, item), reserved)):
                    reserved = 0
                if self._stopped.is_set():
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, entry: tuple[Future[Result], int] | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(entry, timeout=_STOP_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
