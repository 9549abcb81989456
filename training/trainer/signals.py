"""Handles requests to stop a run: SIGTERM, and SIGUSR1, which Slurm sends some time before its SIGTERM."""

import atexit
import contextlib
import logging
import multiprocessing
import multiprocessing.util
import signal
from collections.abc import Collection, Iterator
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
log = logging.getLogger(__name__)


@contextlib.contextmanager
def block_stop_signals() -> Iterator[None]:
    """Blocks the stop signals in this context; processes started in it never get them.

    A scheduler signals every process of a job, but a process that reads data for this one must live until the step is done.
    When this process ends, the child processes that `multiprocessing` started here are killed; `multiprocessing` itself would
    send SIGTERM and wait forever.
    """
    others = set(multiprocessing.active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Registered after `multiprocessing`'s own handler, so it runs first.
        atexit.register(_kill, set(multiprocessing.active_children()) - others)


def _kill(processes: Collection[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()


class StopRequest:
    """Records stop signals while its context lasts; the training loop acts on them between two steps.

    Attributes:
        requested: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.requested = True
        log.info("%s: finishing the step, saving, then stopping", signal.Signals(number).name)
