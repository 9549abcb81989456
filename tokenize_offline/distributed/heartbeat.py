"""Detects processes of a fleet that stopped, by heartbeats in the store.

A launcher notices when a process of its node ends. But when a whole node is lost, no connection is closed, and the others would
wait forever. So every process counts up a heartbeat in the store, and the first process watches the counters. A process that
can't reach the store ends itself, which is safe at any time because shards are published whole.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping

import torch.distributed as dist

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 2.0
# Intervals without a heartbeat before a process counts as lost. A false alarm only costs work done twice.
_MAX_MISSED = 15


@contextlib.contextmanager
def sending_heartbeats(store: dist.Store, rank: int) -> Iterator[None]:
    """Send heartbeats from background threads while the block runs.

    Ends the process with status 1 if the store stops answering. The watching thread is needed because an operation on a store
    whose host is lost returns only when TCP gives up, after a quarter of an hour; the store's timeout does not apply to it.
    """
    stopped = threading.Event()
    sent = threading.Event()
    threads = [
        threading.Thread(target=_send_heartbeats, args=(store, rank, stopped, sent), name="heartbeat", daemon=True),
        threading.Thread(target=_watch, args=(stopped, sent), name="heartbeat watch", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join(2 * _INTERVAL_SECONDS)


def heartbeats(store: dist.Store, rank: int, add: int = 0) -> int:
    """The number of heartbeats of a process, after adding `add`."""
    return int(store.add(f"heartbeats/{rank}", add))


def _send_heartbeats(store: dist.Store, rank: int, stopped: threading.Event, sent: threading.Event) -> None:
    while not stopped.wait(_INTERVAL_SECONDS):
        try:
            heartbeats(store, rank, add=1)
        except dist.DistError:
            # The main thread gets the same error at its next use of the store, or `_watch` ends the process.
            return
        sent.set()


def _watch(stopped: threading.Event, sent: threading.Event) -> None:
    # Counts intervals instead of seconds, so that a suspended process does not end itself when it continues.
    missed = 0
    while not stopped.wait(_INTERVAL_SECONDS):
        missed = 0 if sent.is_set() else missed + 1
        sent.clear()
        if missed > _MAX_MISSED:
            log.error("can't reach the fleet's store, its host may be lost: stopping; run the same command again to resume")
            os._exit(1)


class HeartbeatMonitor:
    """Finds silent processes from their heartbeat counts; call `silent` every `interval` seconds."""

    interval = _INTERVAL_SECONDS

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._missed: dict[int, int] = {}

    def silent(self, counts: Mapping[int, int]) -> set[int]:
        """Ranks whose count has not changed in the last calls.

        Args:
            counts: Rank -> number of heartbeats, for all processes to watch.
        """
        for rank, count in counts.items():
            self._missed[rank] = self._missed.get(rank, 0) + 1 if self._last.get(rank) == count else 0
            self._last[rank] = count
        return {rank for rank in counts if self._missed[rank] >= _MAX_MISSED}
