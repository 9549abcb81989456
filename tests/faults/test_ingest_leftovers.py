"""The workers of a killed command end with it, and the next run removes what they left."""

import os
import subprocess
import sys
import time
from pathlib import Path

from ingest_runs import SHARDS, arguments, summary, write_source

PROCESSES = ("--", "--direct_running_mode=multi_processing", "--direct_num_workers=2")


def workers_of(driver: int) -> list[int]:
    """Return the process ids of the workers of a driver process."""
    wanted = b"pipeline.ingest.runners.beam_worker\0%d\0" % driver
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().endswith(wanted):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def wait_until(condition) -> bool:
    deadline = time.monotonic() + 120
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met


def test_workers_end_with_a_killed_command_and_the_next_run_removes_their_files(tmp_path):
    source, scratch = write_source(tmp_path / "rlds"), tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pipeline", *arguments(source, tmp_path / "out", *PROCESSES)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        assert wait_until(lambda: len(workers_of(running.pid)) == 2 or running.poll() is not None)
        assert running.poll() is None
        running.kill()
    assert wait_until(lambda: not workers_of(running.pid))
    assert len(list(scratch.iterdir())) == 1
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert summary(done)["episodes"] == SHARDS + 1
    assert list(scratch.iterdir()) == []
