"""How a command ends when it is told to: the first signal unwinds it, a second one or ten seconds end it where it is.

Unwinding removes temporary folders, cancels work on clusters and ends other processes. But the exception comes between any two
instructions, also in the midst of somebody's queue or lock, and what holds that later waits for ever. So a thread of its own
hears of the signals too, from Python's C code, whatever the main thread is doing.
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
# A launcher hands on what the terminal has sent to its processes too: that is one signal.
_ONE_SECONDS = 0.5
# Past the thread's own end, which may come while Python itself is shutting down.
_LAST_SECONDS = 3


class Interrupted(KeyboardInterrupt):
    """A signal told the command to end.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interruption:
    """Raises `Interrupted` in the main thread at the first of `SIGNALS`, while its context lasts; it is kept there.

    A signal that was ignored (`nohup`, a shell's background) stays so, and one for which somebody else sets a handler meanwhile
    is theirs. After a signal the process ends within `GRACE_SECONDS`, also when the context is left by then.

    Attributes:
        number: Of the signal that has come, or None.
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
            heard = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        if self._active and self.number is None:
            self._let_go()
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._write)
        elif self._active:
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS + _LAST_SECONDS)

    def _let_go(self) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, handler)
        Interruption._current = self._outer

    def _hear(self, number: int, _: FrameType | None) -> None:
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
            heard = os.read(read, 1)
            if not heard:
                os.close(read)
                return
            number = heard[0]
            if signal.getsignal(number) != self._hear:
                continue
            if first is None:
                first = (number, time.monotonic())
            elif time.monotonic() > first[1] + _ONE_SECONDS:
                _end_now(number, "told again")


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """A block that no signal interrupts: it is heeded at the block's end. For the main thread."""
    current = Interruption._current
    return contextlib.nullcontext() if current is None else current._holding()


def _end_now(number: int, why: str) -> None:
    os.write(2, f"{why}: ending at once\n".encode())
    kill_descendants()
    os._exit(128 + number)


def _forget() -> None:
    """A process that is merely forked writes its signals to no pipe of another one."""
    current = Interruption._current
    if current is not None:
        signal.set_wakeup_fd(-1)
        current._let_go()


os.register_at_fork(after_in_child=_forget)
