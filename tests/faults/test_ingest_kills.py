"""Killed at any moment, however often, an ingest leaves nothing half-written under a final name; its next run completes it."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ingest_runs import SHARDS, arguments, check_visible, hashes, ingest, summary, write_source

KILLS = 50
EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("rlds"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("whole")
    assert summary(ingest(source, output))["made"] == SHARDS + 1
    return hashes(output)


class KillAtEvent:
    """What a process does to itself to die at a moment of its work, whatever the speed of its machine.

    Its work is counted in audit events (PEP 578) on what lies in the output folder: files opened, renamed and removed, folders
    made. Each is noted as one byte in `said`; at number `last`, or `delay` seconds later for the moments between two of
    them, the process is killed.
    """

    def __init__(self, output: Path, said: Path, last: int | None = None, delay: float = 0.0) -> None:
        self.output, self.said, self.last, self.delay = str(output), said, last, delay

    def __call__(self) -> None:
        self.left, self.notes = self.last, os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(self.hear)

    def hear(self, event: str, given: tuple[object, ...]) -> None:
        if event not in EVENTS or not str(given[0]).startswith(self.output):
            return
        os.write(self.notes, b".")
        if self.left is None:
            return
        self.left -= 1
        if self.left == 0:
            if self.delay:
                threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)


def test_fifty_kills_at_random_moments_change_no_byte_of_the_outcome(source, whole, tmp_path):
    moments, heard = random.Random(0), tmp_path / "heard"
    assert ingest(source, tmp_path / "first", prepare=KillAtEvent(tmp_path / "first", heard)).returncode == 0
    events = heard.stat().st_size
    kills, output, progress = 0, tmp_path / "0", set()
    while kills < KILLS:
        dies = KillAtEvent(output, heard, moments.randint(1, events), moments.choice((0.0, moments.uniform(0, 0.02))))
        kills += ingest(source, output, prepare=dies).returncode == -signal.SIGKILL
        there = check_visible(output, whole)
        progress.add(there)
        if there == SHARDS + 1 or kills == KILLS:
            assert ingest(source, output).returncode == 0
            assert hashes(output) == whole
            output = tmp_path / str(kills)
    # The moments were spread over the work, and not all before it or after it.
    assert len(progress) > SHARDS // 2


def kill_all(source, output, after: float) -> bool:
    """Start the command with its worker processes, kill all of them at once after a while; whether it was still running."""
    command = [sys.executable, "-m", "pipeline", *arguments(source, output)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        running.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return True
    return False


@pytest.mark.soak
def test_fifty_kills_of_the_command_with_its_worker_processes_change_no_byte_either(source, whole, tmp_path):
    moments = random.Random(1)
    began = time.monotonic()
    assert not kill_all(source, tmp_path / "first", 600)
    lasts = time.monotonic() - began
    kills = 0
    for attempt in range(4 * KILLS):
        output = tmp_path / f"after {kills // 5 * 5}"
        kills += kill_all(source, output, moments.uniform(0.2 * lasts, lasts))
        check_visible(output, whole)
        if kills % 5 == 0 and output.exists():
            assert ingest(source, output).returncode == 0, attempt
            assert hashes(output) == whole
        if kills == KILLS:
            return
    pytest.fail(f"only {kills} of {4 * KILLS} runs could be killed before they were done")
