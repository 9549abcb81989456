"""Which processes of a fleet are still there, when nobody says goodbye.

A launcher sees a process of its own node die, but a node that vanishes with its launcher ends no connection: whoever waits for
it waits for good. So every process beats in the store. The first one hears who fell silent, and a process that no longer
reaches the store ends itself, which is safe at any moment: shards are published whole.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping

import torch.distributed as dist

log = logging.getLogger(__name__)

_BEAT_SECONDS = 2.0
# Rounds without a beat before a process counts as gone. A false alarm costs work done twice, no more.
_PATIENCE = 15


@contextlib.contextmanager
def sending_heartbeats(store: dist.Store, rank: int) -> Iterator[None]:
    """Beat for the length of a block, from threads of their own, as the process may be busy for long.

    Ends the process with status 1 where the store does not answer. (An operation on a store whose host vanished returns after
    a quarter of an hour, when TCP gives up; no timeout of the store's applies to it.)
    """
    stopped = threading.Event()
    beaten = threading.Event()
    threads = [
        threading.Thread(target=_beat, args=(store, rank, stopped, beaten), name="pulse", daemon=True),
        threading.Thread(target=_watch, args=(stopped, beaten), name="pulse watch", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join(2 * _BEAT_SECONDS)


def _beat(store: dist.Store, rank: int, stopped: threading.Event, beaten: threading.Event) -> None:
    while not stopped.wait(_BEAT_SECONDS):
        try:
            store.add(f"beats of {rank}", 1)
        except dist.DistError:
            # The process hears the same at its own next use of the store, if the watch doesn't end it before.
            return
        beaten.set()


def _watch(stopped: threading.Event, beaten: threading.Event) -> None:
    # Rounds are counted, not seconds, so that a process that was suspended as a whole does not end itself when it goes on.
    silent = 0
    while not stopped.wait(_BEAT_SECONDS):
        silent = 0 if beaten.is_set() else silent + 1
        beaten.clear()
        if silent > _PATIENCE:
            log.error("the fleet's store is out of reach, its host may be gone: ending; run the same command again to go on")
            os._exit(1)


class HeartbeatMonitor:
    """Tells from the numbers of beats, looked at in rounds `interval` seconds apart, who fell silent."""

    interval = _BEAT_SECONDS

    def __init__(self) -> None:
        self._heard: dict[int, int] = {}
        self._silent: dict[int, int] = {}

    def silent(self, beats: Mapping[int, int]) -> set[int]:
        """Ranks whose number has not changed for many rounds.

        Args:
            beats: Rank -> beats so far, of all processes that should be there; one call is one round.
        """
        for rank, number in beats.items():
            same = self._heard.get(rank) == number
            self._silent[rank] = self._silent.get(rank, 0) + 1 if same else 0
            self._heard[rank] = number
        return {rank for rank in beats if self._silent[rank] >= _PATIENCE}
