"""How much memory a piece of work takes at its peak, the processes that read HDF5 for it included. Linux only."""

import contextlib
import ctypes
import gc
import resource
from collections.abc import Iterator
from pathlib import Path

from pipeline.sources.hdf5 import process as hdf5_process


class PeakMemory:
    """Measures piece after piece of work against what the process had when the measuring began.

    Memory that one piece leaves behind so counts for the next one too.

    Attributes:
        most: The highest peak of a piece so far, in bytes beyond the beginning.
    """

    def __init__(self) -> None:
        self.most = 0
        # What went before may have left memory that would be used again without being seen.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self._start = _status("self", "VmRSS")
        self._ended = _of_ended_children()

    @contextlib.contextmanager
    def measured(self, limit: int) -> Iterator[None]:
        """Fail where the block takes `limit` bytes or more.

        A child that lives on counts by what it grew, one that was started in the block whole. One that ended counts alone: what
        the kernel keeps of it has the parent's size in it.
        """
        before = {pid: _status(pid, "VmRSS") for pid in _children()}
        for pid in ("self", *before):
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM counts from here; proc_pid_clear_refs(5)
        yield
        peak = _status("self", "VmHWM") - self._start
        peak += sum(_status(pid, "VmHWM") - before.get(pid, 0) for pid in _children())
        ended = _of_ended_children()
        if ended > self._ended:
            self._ended = ended
            peak = max(peak, ended - self._start)
        self.most = max(self.most, peak)
        assert peak < limit, f"{peak >> 20} MiB, the limit is {limit >> 20}"


def _children() -> list[str]:
    return [str(reader._process.pid) for reader in hdf5_process._idle]


def _of_ended_children() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10


def _status(pid: str, name: str) -> int:
    """A number of bytes of a process's status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) << 10
