"""Processes that a command starts end with it: however it ends, whichever of them was meant, and whatever they are doing.

The kernel sees to it: a process that is killed can't, and one that is in the midst of a decoder's C code looks at nothing. A
`Child` needs to know nothing of this. Processes that `multiprocessing`, Beam or a launcher starts call `follow_parent` or
`end_with_parent` themselves. A process that called `adopt_orphans` finds the rest by `kill_descendants`.
"""

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# Set by torchrun and accelerate, and by deepspeed, for processes of which they are the parents.
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
_END_SECONDS, _LOOK_SECONDS = 5.0, 0.02


class Child(subprocess.Popen[Any]):
    """A command in a process that is killed as soon as this process ends, or lets go of this object.

    It holds one end of a pipe, whose other end is here; the kernel signals the process when that one closes (`F_SETSIG` in
    fcntl(2)). Unlike `PR_SET_PDEATHSIG` this asks nothing of the command, and the thread that started it may end.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        """Start it.

        Args:
            command: Program and arguments.
            options: Of `subprocess.Popen`, but for `pass_fds`.
        """
        theirs, ours = os.pipe()
        self._lifeline = os.fdopen(ours, "wb", buffering=0)
        try:
            super().__init__(command, pass_fds=(theirs,), **options)
            fcntl.fcntl(theirs, fcntl.F_SETOWN, self.pid)
            fcntl.fcntl(theirs, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(theirs, fcntl.F_SETFL, fcntl.fcntl(theirs, fcntl.F_GETFL) | os.O_ASYNC)
        finally:
            os.close(theirs)

    def __del__(self, *given: Any, **named: Any) -> None:
        """Let go; Popen keeps the object of a process that still runs."""
        self._lifeline.close()
        super().__del__(*given, **named)


def follow_parent(parent: int | None = None) -> None:
    """Leave the interrupt from the keyboard, which goes to a whole group, to the parent of this process, and end with it.

    Args:
        parent: Its number, where this process isn't one of `multiprocessing`'s, which knows.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the one that started it ends. See `follow_parent`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have ended before.
    known = multiprocessing.parent_process()
    if (known is not None and not known.is_alive()) or parent not in (None, os.getppid()):
        os._exit(1)


def end_with_launcher(environment: Mapping[str, str]) -> None:
    """End with the launcher that started this process, where one did: torchrun, accelerate launch or deepspeed.

    A process that nothing but a shell or Slurm started may well outlive its parent.
    """
    if any(name in environment for name in _LAUNCHERS):
        end_with_parent()


@contextlib.contextmanager
def process_pool(processes: int, method: Literal["spawn", "forkserver"]) -> Iterator[ProcessPoolExecutor]:
    """Processes that follow this one; where the block ends by an error, they don't finish what they are doing."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context(method), initializer=follow_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown()


def adopt_orphans() -> None:
    """Become the parent of whatever loses its own among the processes that this one started, and those that they did."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> set[int]:
    """The processes that a process started, those that they did, and so on, as far as they run."""
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, in which there may be anything.
            state, parent, *_ = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if state not in "ZX":
                children[int(parent)].append(int(path.parent.name))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        new = children[waiting.pop()]
        found.update(new)
        waiting += new
    return found


def kill_descendants(but: Collection[int] = ()) -> None:
    """Kill all descendants of this process, and wait until they are gone.

    Args:
        but: Those that stay.
    """
    deadline = time.monotonic() + _END_SECONDS
    while (left := descendants(os.getpid()).difference(but)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)
