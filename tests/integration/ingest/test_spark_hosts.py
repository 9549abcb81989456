"""Ingest on a standalone Spark cluster of several hosts: losses in the middle of a shard don't change the result.

Started as a user does, by `scripts/spark/ingest.sh`. Needs PySpark and Java.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from network_hosts import Host, needs_hosts, network_hosts
from one_process import contents, source_and_outcome
from rlds_data import NAME

pyspark = pytest.importorskip("pyspark")
pytestmark = [
    needs_hosts,
    pytest.mark.soak,
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
]

SPARK = Path(pyspark.__file__).parent
SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "spark" / "ingest.sh"
RECIPE = ["--data.frames", "source", "--data.shard_mib", "1", "--dataset", NAME, "--camera", "image", "--rate", "10"]
SETTINGS = """
spark.driver.memory 512m
spark.executor.memory 512m
spark.ui.enabled false
# How long the driver waits for a host that fell silent.
spark.executor.heartbeatInterval 2s
spark.network.timeout 10s
spark.network.timeoutInterval 2s
"""
SPECULATION = """
spark.speculation true
spark.speculation.quantile 0.5
spark.speculation.multiplier 2
"""
DEADLY_SHARD = "train-000003.tar"
# Stands for whatever ends a process on one episode alone, such as a decoder that crashes or too much memory.
DEADLY = f"""
import os, signal, sys
def end(event, arguments):
    if event == "open" and ".{DEADLY_SHARD}.partial" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(end)
"""


class Cluster(NamedTuple):
    """The host of the master and the driver, and the workers by host; gives commands their environment."""

    head: Host
    workers: "dict[Host, subprocess.Popen[str]]"
    environment: dict[str, str]

    def ingest(self, source: Path, output: Path, **more: str) -> "subprocess.Popen[str]":
        """Start the script on the master's host."""
        command = ["bash", str(SCRIPT), *RECIPE, "--source", str(source), "--output", str(output)]
        return self.head.popen(command, self.environment | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    return source_and_outcome(tmp_path_factory)


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    """Start a master on one host, and a worker with one core on each of two other hosts."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "spark-defaults.conf").write_text(SETTINGS)
    environment = {
        "SPARK_CONF_DIR": str(tmp_path / "conf"),
        "SPARK_LOCAL_DIRS": str(tmp_path / "local"),
        "SPARK_DAEMON_MEMORY": "128m",
        "JAVA_TOOL_OPTIONS": "-XX:ActiveProcessorCount=1 -XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    start = [str(SPARK / "bin" / "spark-class"), "org.apache.spark.deploy"]
    with network_hosts(3) as (head, *others):
        master = [start[0], f"{start[1]}.master.Master", "--host", head.address, "--port", "7077", "--webui-port", "0"]
        head.popen(master, environment)
        head.run(["bash", "-c", f"until (: </dev/tcp/{head.address}/7077) 2>/dev/null; do sleep 0.2; done"])
        environment["MASTER"] = f"spark://{head.address}:7077"
        workers = {}
        for host in others:
            limits = ["--cores", "1", "--memory", "600m", "--work-dir", str(tmp_path / host.name), "--webui-port", "0"]
            worker = [start[0], f"{start[1]}.worker.Worker", "--host", host.address, *limits, environment["MASTER"]]
            workers[host] = host.popen(worker, environment)
        yield Cluster(head, workers, environment)


def open_shard(pid: int, output: Path) -> Path | None:
    """Return the file in which a process writes an unpublished shard, or None."""
    try:
        targets = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # It ended meanwhile.
        return None
    return next((target for target in targets if target.is_relative_to(output) and target.suffix == ".partial"), None)


def stop_in_the_middle_of_a_shard(driver: "subprocess.Popen[str]", output: Path) -> tuple[int, Path]:
    """Stop an executor's Python in the middle of a shard, after another shard is done; return its pid and its file."""
    while True:
        assert driver.poll() is None, "the job ended before anything could be lost: " + driver.communicate()[1]
        for pid in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
            if not list(output.glob("*.json")) or open_shard(pid, output) is None:
                continue
            os.kill(pid, signal.SIGSTOP)
            file = open_shard(pid, output)
            if file is not None:
                return pid, file
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)


def ended(driver: "subprocess.Popen[str]") -> dict:
    """Return the summary of a successful driver."""
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err[-5000:]
    return json.loads(out)


def host_of(pid: int, hosts: "list[Host]") -> Host:
    network = Path(f"/proc/{pid}/ns/net").readlink()
    return next(host for host in hosts if Path(f"/proc/{host.pid}/ns/net").readlink() == network)


@pytest.mark.parametrize("loss", ["a worker is killed", "a host loses power", "a host is cut off", "a process hangs"])
def test_a_loss_in_the_middle_of_a_shard_gives_the_same_files_as_one_process(made, cluster, tmp_path, loss):
    source, expected = made
    output = tmp_path / NAME
    if loss == "a process hangs":
        (tmp_path / "conf" / "spark-defaults.conf").write_text(SETTINGS + SPECULATION)
    driver = cluster.ingest(source, tmp_path)
    doomed, file = stop_in_the_middle_of_a_shard(driver, output)
    host = host_of(doomed, list(cluster.workers))
    if loss == "a worker is killed":
        os.killpg(cluster.workers[host].pid, signal.SIGKILL)  # Its executor too.
        os.kill(doomed, signal.SIGKILL)
    elif loss == "a host loses power":
        host.kill()
    elif loss == "a host is cut off":
        host.unplug()
    summary = ended(driver)
    assert summary["failed"] == {} and summary["made"] == sum(name.endswith(".tar") for name in expected) > 5
    assert contents(output) == expected
    if loss == "a host is cut off":
        # The executor that was considered lost continues, and publishes what another host has published meanwhile.
        assert open_shard(doomed, output) == file
        os.kill(doomed, signal.SIGCONT)
        while file.exists():
            time.sleep(0.05)
        assert contents(output) == expected
    if loss != "a process hangs":
        # Spark ends the slower of two copies, here after the other has published: what it had staged stays, unseen.
        assert not list(output.glob("**/*.partial"))


def test_a_shard_that_kills_every_process_is_given_up_and_the_others_are_made(made, cluster, tmp_path):
    source, expected = made
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    (tmp_path / "conf" / "spark-defaults.conf").write_text(SETTINGS + f"spark.executorEnv.PYTHONPATH {tmp_path / 'site'}\n")
    driver = cluster.ingest(source, tmp_path)
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 1
    assert list(json.loads(out)["failed"]) == [DEADLY_SHARD]
    assert f"error: {NAME}: 1 shards could not be made:\n  {DEADLY_SHARD}: 3 processes or executors" in err
    (tmp_path / "conf" / "spark-defaults.conf").write_text(SETTINGS)
    assert ended(cluster.ingest(source, tmp_path))["made"] == 1
    assert contents(tmp_path / NAME) == expected


def test_ctrl_c_ends_the_job_and_the_next_run_resumes(made, cluster, tmp_path):
    source, expected = made
    driver = cluster.ingest(source, tmp_path)
    stop_in_the_middle_of_a_shard(driver, tmp_path / NAME)
    os.killpg(driver.pid, signal.SIGINT)
    out, err = driver.communicate(timeout=120)
    assert (driver.returncode, out) == (130, "")
    assert "interrupted; run the same command again to resume" in err and "Traceback" not in err
    summary = ended(cluster.ingest(source, tmp_path))
    assert 0 < summary["made"] < summary["shards"] == sum(name.endswith(".tar") for name in expected)
    assert contents(tmp_path / NAME) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"MASTER": "spark://host1:7077"}, "no master answers there (host1:7077: [Errno 111] Connection refused)"),
        ({"PYSPARK_PYTHON": "/no/python"}, 'Cannot run program "/no/python"'),
    ],
    ids=["no master", "no Python"],
)
def test_an_unusable_cluster_is_an_error_with_advice(made, cluster, tmp_path, given, expected):
    driver = cluster.ingest(made[0], tmp_path, **given)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 1
    (message,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert expected in message and "Traceback" not in err
