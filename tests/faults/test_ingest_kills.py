"""An ingest that is killed at any moment leaves no partial file under a final name; the next run completes it."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from ingest_runs import SHARDS, KillAtEvent, arguments, check_visible, hashes, ingest, summary, write_source

KILLS, MANY_KILLS = 25, 50


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("rlds"))


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("whole")
    assert summary(ingest(source, output))["made"] == SHARDS + 1
    return hashes(output)


def test_kills_at_random_moments_change_no_byte_of_the_output(source, whole, tmp_path):
    moments, heard = random.Random(0), tmp_path / "heard"
    counted = []  # Events of a whole run, and of one that finds all done.
    for _ in range(2):
        assert ingest(source, tmp_path / "first", prepare=KillAtEvent(tmp_path / "first", heard)).returncode == 0
        counted.append(heard.stat().st_size)
    events, idle = counted
    outputs = (tmp_path / str(number) for number in itertools.count())
    kills, published, output, progress = 0, 0, next(outputs), set()
    while kills < KILLS:
        left = idle + (events - idle) * (SHARDS + 1 - published) // (SHARDS + 1)
        dies = KillAtEvent(output, heard, moments.randint(1, left), moments.choice((0.0, moments.uniform(0, 0.02))))
        killed = ingest(source, output, prepare=dies).returncode == -signal.SIGKILL
        kills += killed
        published = check_visible(output, whole)
        progress.add(published)
        if not killed or published == SHARDS + 1 or kills == KILLS:
            assert ingest(source, output).returncode == 0
            assert hashes(output) == whole
            published, output = 0, next(outputs)
    # The kills were spread over the whole work.
    assert len(progress) > SHARDS // 2


def kill_all(source, output, after: float) -> bool:
    """Start the command, kill it and its workers after `after` seconds; return whether it was still running."""
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
def test_fifty_kills_of_the_command_and_its_worker_processes_change_no_byte(source, whole, tmp_path):
    moments = random.Random(1)
    began = time.monotonic()
    assert not kill_all(source, tmp_path / "first", 600)
    lasts = time.monotonic() - began
    kills, output = 0, tmp_path / "0"
    for attempt in range(4 * MANY_KILLS):
        killed = kill_all(source, output, moments.uniform(0.2 * lasts, lasts))
        kills += killed
        check_visible(output, whole)
        # A run with nothing left to do ends before it can be killed.
        if not killed or kills % 5 == 0:
            assert ingest(source, output).returncode == 0, attempt
            assert hashes(output) == whole
            output = tmp_path / str(attempt + 1)
        if kills == MANY_KILLS:
            return
    pytest.fail(f"only {kills} of {4 * MANY_KILLS} runs could be killed before they were done")
