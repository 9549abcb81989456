"""Whole trees of processes: marked in their environment, started on a terminal of their own, looked for after their end."""

import contextlib
import os
import pty
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = "IVIDEOGPT_TEST_MARK"
# What a user waits at most for a command to be gone.
SECONDS = 15.0


def runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 200.0) -> bool:
    """Whether a condition is met within some seconds."""
    deadline = time.monotonic() + seconds
    while not (met := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def gone(*processes: int) -> bool:
    """Whether processes are gone in the time that they have."""
    return wait_until(lambda: not any(map(runs, processes)), SECONDS)


class Tree:
    """A command that runs, and all processes that have their environment from it.

    Attributes:
        process: The command's own.
        said: What it and the others have written so far, where it is on a terminal.
    """

    def __init__(self, command: list[str], terminal: bool, environment: dict[str, str]) -> None:
        self._mark = uuid.uuid4().hex
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment, MARK: self._mark}
        self.said = b""
        self._master = None
        if terminal:
            self._master, slave = pty.openpty()
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                preexec_fn=lambda: os.login_tty(slave),
            )
            os.close(slave)
            threading.Thread(target=self._listen, daemon=True).start()
        else:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 1 << 16):
                self.said += data

    def press_ctrl_c(self) -> None:
        """As a person does, at the terminal."""
        os.write(self._master, b"\x03")

    def all(self) -> set[int]:
        """The processes that are left of it."""
        mark = f"{MARK}={self._mark}".encode()
        found = set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0") and runs(int(path.parent.name)):
                    found.add(int(path.parent.name))
        return found

    def commands(self) -> list[str]:
        """The command lines of what is left, to tell what it is."""
        lines = []
        for process in self.all():
            with contextlib.suppress(OSError):
                lines.append(Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        return lines

    def is_gone(self) -> bool:
        """Whether nothing of it is left in the time that there is."""
        return wait_until(lambda: self.process.poll() is not None and not self.all(), SECONDS)


@contextlib.contextmanager
def tree(command: list[str], terminal: bool = False, **environment: str) -> Iterator[Tree]:
    """Start a command; whatever is left of it is killed at the end of the block."""
    started = Tree(command, terminal, environment)
    try:
        yield started
    finally:
        while left := started.all():
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, 9)
        started.process.wait()
        if started._master is not None:
            os.close(started._master)
