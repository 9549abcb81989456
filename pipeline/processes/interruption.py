"""Ends a command on a signal: the first signal unwinds it; a second signal, or ten seconds, ends it at once.

Unwinding removes temporary folders, cancels work on clusters and ends other processes. But the exception may come between any
two instructions, even inside another library's queue or lock, and a later user of that lock waits forever. So a separate thread
also hears the signals, from Python's C code, whatever the main thread does.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from pipeline.processes.child_processes import kill_descendants

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 10.0
# A launcher forwards a signal that the terminal has also sent to its processes: count both as one.
_SAME_SIGNAL_SECONDS = 0.5
# Extra time of the timer that acts if the thread has ended, as it may while Python shuts down.
_TIMER_MARGIN_SECONDS = 3


class Interrupted(KeyboardInterrupt):
    """A signal ends the command.

    Attributes:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interruption:
    """Within its context, raises `Interrupted` in the main thread at the first of `SIGNALS`.

    Ignored signals (`nohup`, a shell's background) stay ignored, and a signal with a new handler of other code is left to it.
    After a signal the process ends within `GRACE_SECONDS`, even if the context is left by then.

    Attributes:
        number: Number of the received signal, or None.
    """

    _current: "Interruption | None" = None

    def __init__(self) -> None:
        self.number: int | None = None
        self._held = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._outer = Interruption._current
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            Interruption._current = self
            read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(read,), name="signals", daemon=True).start()
            handled = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._on_signal) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        if self._active and self.number is None:
            self._restore_handlers()
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._write)
        elif self._active:
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS + _TIMER_MARGIN_SECONDS)

    def _restore_handlers(self) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        Interruption._current = self._outer

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            if not self._held:
                raise Interrupted(number)

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        self._held += 1
        before = self.number
        try:
            yield
        finally:
            self._held -= 1
            if self.number is not None and before is None and not self._held:
                raise Interrupted(self.number)

    def _watch(self, read: int) -> None:
        first: tuple[int, float] | None = None
        while True:
            left = None if first is None else max(0.0, first[1] + GRACE_SECONDS - time.monotonic())
            ready, _, _ = select.select([read], [], [], left)
            if not ready and first is not None:
                _end_now(first[0], f"still not ended after {GRACE_SECONDS:.0f} s")
            received = os.read(read, 1)
            if not received:
                os.close(read)
                return
            number = received[0]
            if signal.getsignal(number) != self._on_signal:
                continue
            if first is None:
                first = (number, time.monotonic())
            elif time.monotonic() > first[1] + _SAME_SIGNAL_SECONDS:
                _end_now(number, "second signal")


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """Returns a context that delays a signal's exception to the end of the block. For the main thread."""
    current = Interruption._current
    return contextlib.nullcontext() if current is None else current._holding()


def _end_now(number: int, reason: str) -> None:
    os.write(2, f"{reason}: ending at once\n".encode())
    kill_descendants()
    os._exit(128 + number)


def _forget() -> None:
    """In a forked process, stops writing signals to the parent's pipe."""
    current = Interruption._current
    if current is not None:
        signal.set_wakeup_fd(-1)
        current._restore_handlers()


os.register_at_fork(after_in_child=_forget)
