"""Ingest on a Dask cluster of several hosts: after a worker is killed, the result equals that of one process."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from network_hosts import needs_hosts, network_hosts
from one_process import contents, source_and_outcome
from rlds_data import NAME

SMALL = {"OMP_NUM_THREADS": "1"}
# How long a scheduler waits for a host that fell silent.
IMPATIENT = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "4s"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    return source_and_outcome(tmp_path_factory)


def dask(*words: str) -> list[str]:
    return [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]]


def is_in_the_middle_of_a_shard(worker: "subprocess.Popen[str]", output: Path) -> bool:
    """Whether a stopped worker has an unpublished shard open."""
    for link in Path(f"/proc/{worker.pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith(str(output)) and target.endswith(".partial"):
            return True
    return False


@needs_hosts
@pytest.mark.parametrize("loss", ["a worker is killed", pytest.param("a host loses power", marks=pytest.mark.soak)])
def test_losing_a_worker_on_one_of_two_hosts_gives_the_same_files_as_one_process(made, tmp_path, loss):
    source, expected = made
    output = tmp_path / NAME
    with network_hosts(3) as (head, first, second):
        address = f"tcp://{head.address}:8786"
        head.popen(dask("scheduler", "--host", head.address, "--no-dashboard"), env=SMALL | IMPATIENT)
        joining = dask("worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
        workers = [host.popen([*joining, "--host", host.address], env=SMALL) for host in (first, second)]
        recipe = ["--data.frames", "source", "--data.shard_mib", "1", "--dataset", NAME, "--camera", "image", "--rate", "10"]
        places = ["--source", str(source), "--output", str(tmp_path), "--dask", address]
        command = [sys.executable, "-m", "pipeline", *recipe, *places]
        driver = head.popen(command, SMALL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        doomed = workers[1]
        while True:
            assert driver.poll() is None, "the job ended before a worker could be lost: " + driver.communicate()[1]
            doomed.send_signal(signal.SIGSTOP)
            if list(output.glob("*.json")) and is_in_the_middle_of_a_shard(doomed, output):
                break
            doomed.send_signal(signal.SIGCONT)
            time.sleep(0.02)
        doomed.kill() if loss == "a worker is killed" else second.kill()
        out, err = driver.communicate(timeout=300)
        assert driver.returncode == 0, err
        summary = json.loads(out)
    assert summary["failed"] == {} and summary["made"] == sum(name.endswith(".tar") for name in expected) > 5
    assert contents(output) == expected
