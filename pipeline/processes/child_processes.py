"""Processes that a command starts end with it, however it ends and whatever they are doing.

The kernel ends them, because a killed command can't, and a process inside a decoder's C code can't check. A `Child` needs no
cooperation. Processes of `multiprocessing`, Beam or a launcher call `follow_parent` or `end_with_parent` themselves. A process
that called `adopt_orphans` ends the rest with `kill_descendants`.
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
# Set by torchrun and accelerate, and by deepspeed, for their child processes.
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")
_KILL_SECONDS, _POLL_SECONDS = 5.0, 0.02


class Child(subprocess.Popen[Any]):
    """A command in a process that is killed when this process ends or drops this object.

    The child holds one end of a pipe and this process the other; when this end closes, the kernel signals the child (`F_SETSIG`
    in fcntl(2)). Unlike `PR_SET_PDEATHSIG`, this needs nothing of the command, and the thread that started it may end.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        """Starts the command.

        Args:
            command: Program and arguments.
            options: Options of `subprocess.Popen`, except `pass_fds`.
        """
        child_end, parent_end = os.pipe()
        self._lifeline = os.fdopen(parent_end, "wb", buffering=0)
        try:
            super().__init__(command, pass_fds=(child_end,), **options)
            fcntl.fcntl(child_end, fcntl.F_SETOWN, self.pid)
            fcntl.fcntl(child_end, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(child_end, fcntl.F_SETFL, fcntl.fcntl(child_end, fcntl.F_GETFL) | os.O_ASYNC)
        finally:
            os.close(child_end)

    def __del__(self, *given: Any, **named: Any) -> None:
        """Kills the command if it still runs: Popen itself would keep its process."""
        self._lifeline.close()
        super().__del__(*given, **named)


def follow_parent(parent: int | None = None) -> None:
    """Ignores keyboard interrupts, which the parent handles for the whole group, and ends with the parent.

    Args:
        parent: Process id of the parent; None in a process of `multiprocessing`, which knows it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)


def end_with_parent(parent: int | None = None) -> None:
    """Makes the kernel kill this process when its parent ends.

    Args:
        parent: As in `follow_parent`.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have ended already.
    known = multiprocessing.parent_process()
    if (known is not None and not known.is_alive()) or parent not in (None, os.getppid()):
        os._exit(1)


def end_with_launcher(environment: Mapping[str, str]) -> None:
    """Ends with the launcher that started this process, if one did: torchrun, accelerate launch or deepspeed.

    A process that only a shell or Slurm started may outlive its parent.
    """
    if any(name in environment for name in _LAUNCHERS):
        end_with_parent()


@contextlib.contextmanager
def process_pool(processes: int, method: Literal["spawn", "forkserver"]) -> Iterator[ProcessPoolExecutor]:
    """Yields a pool of processes that end with this one; if the block raises an error, kills their running work."""
    earlier = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context(method), initializer=follow_parent)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - earlier:
            process.kill()
        raise
    finally:
        pool.shutdown()


def adopt_orphans() -> None:
    """Becomes the parent of any process below this one that loses its own parent."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> set[int]:
    """Returns the ids of the running processes that a process started, directly or indirectly."""
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The fields follow the name, which may hold any character.
            state, parent, *_ = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if state not in "ZX":
                children[int(parent)].append(int(path.parent.name))
    ids: set[int] = set()
    pending = [root]
    while pending:
        new = children[pending.pop()]
        ids.update(new)
        pending += new
    return ids


def kill_descendants(keep: Collection[int] = ()) -> None:
    """Kills all descendants of this process and waits until they are gone.

    Args:
        keep: Ids of processes to keep.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := descendants(os.getpid()).difference(keep)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
