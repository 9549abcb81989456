"""Work done ahead: items of an iterator are produced in a background thread and processed by a pool, in order.

The queue between is bounded, so memory is too. An error anywhere comes out at the consumer, in its place in the order.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_STOP_POLL_SECONDS = 0.1


class Prefetcher(Generic[Item, Result]):
    """Iterates over `process(item)` for the items of `source`, in their order, computed ahead. Use it as a context manager."""

    def __init__(self, source: Iterator[Item], process: Callable[[Item], Result], threads: int, depth: int) -> None:
        """Start.

        Args:
            source: Consumed in one background thread.
            process: Called in `threads` other threads.
            threads: How many.
            depth: Results that wait at most.
        """
        self._queue: queue.Queue[Future[Result] | BaseException | None] = queue.Queue(depth)
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
            yield entry.result()

    def _feed(self, source: Iterator[Item]) -> None:
        try:
            for item in source:
                if not self._put(self._pool.submit(self._process, item)):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, entry: Future[Result] | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(entry, timeout=_STOP_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
