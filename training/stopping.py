"""A run that is asked to stop: SIGTERM, and SIGUSR1, which Slurm sends some time before its SIGTERM."""

import logging
import signal
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
log = logging.getLogger(__name__)


class StopRequest:
    """Notes the signals while its context lasts, and leaves it to the training loop to act between two steps.

    Attributes:
        made: Whether one has come.
    """

    def __init__(self) -> None:
        self.made = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.made = True
        log.info("%s: finishing the step, saving, then stopping", signal.Signals(number).name)
