"""When a node of a tokenizing fleet is lost, the others make its shards, with the same bytes."""

import json
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
from network_hosts import Host, needs_hosts, network_hosts
from synthetic_episodes import tiny_tokenizer, write_shards
from tokenize_runs import SHARDS, command, environment, files, records, run, summary_of, wait_for_a_record

pytestmark = needs_hosts

# With HANG, reading creates that file and then hangs. With AWAIT, reading waits until that file exists, so that both hosts get
# shards. With a folder FREE_UNTIL_RECORD, the wait starts after the first manifest in it. A lost process is found in 7 s,
# not 30.
READING = """
    import os, sys, time, simplejpeg
    from pathlib import Path
    if "tokenize_offline" in sys.orig_argv or "tokenize_offline" in sys.modules:
        from tokenize_offline.distributed import heartbeat
        heartbeat._INTERVAL_SECONDS = heartbeat.HeartbeatMonitor.interval = 0.5
    decode = simplejpeg.decode_jpeg
    paths = {name: Path(os.environ[name]) for name in ("HANG", "AWAIT", "FREE_UNTIL_RECORD") if name in os.environ}
    def free():
        return "FREE_UNTIL_RECORD" in paths and not list(paths["FREE_UNTIL_RECORD"].rglob("*.json"))
    def read(*rest, **options):
        if "HANG" in paths:
            paths["HANG"].touch()
            time.sleep(1000)
        while "AWAIT" in paths and not paths["AWAIT"].exists() and not free():
            time.sleep(0.05)
        return decode(*rest, **options)
    simplejpeg.decode_jpeg = read
"""


# With torch 2.13, nodes that join later wait forever for an address in torchrun's store, so processes create their own.
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny_tokenizer(folder / "tok")
    write_shards(folder / "eps", shards=SHARDS, episodes=4)
    summary_of(run(folder, folder / "out"))
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(textwrap.dedent(READING))
    return folder


def start(host: Host, words: list[str], folder: Path, **more: str) -> "subprocess.Popen[str]":
    env = environment(PYTHONPATH=str(folder / "site"), **more)
    return host.popen(words, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def srun(rank: int) -> dict[str, str]:
    """Variables that `srun --nodes 2 --ntasks-per-node 1` sets on node `rank`."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "host[0-1]",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(rank),
    }


def wait_for(file: Path, seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} never came"
        time.sleep(0.02)


def test_the_first_process_makes_the_shards_of_a_lost_node(undisturbed, tmp_path):
    words, hanging = command(undisturbed, tmp_path / "out"), tmp_path / "hanging"
    with network_hosts(2) as (first, second):
        survivor = start(first, words, undisturbed, AWAIT=str(hanging), **srun(0))
        start(second, words, undisturbed, HANG=str(hanging), **srun(1))
        wait_for(hanging)
        second.kill()
        said, _ = survivor.communicate(timeout=240)
    assert survivor.returncode == 0, said
    assert "1 processes stopped responding" in said
    assert json.loads(said.strip().splitlines()[-1])["processes_lost"] == 1
    assert files(tmp_path / "out") == files(undisturbed / "out")


def test_when_the_node_of_the_store_is_lost_the_others_end_and_the_same_command_completes(undisturbed, tmp_path):
    words, hanging = command(undisturbed, tmp_path / "out"), tmp_path / "hanging"
    with network_hosts(2) as (first, second):
        start(first, words, undisturbed, HANG=str(hanging), **srun(0))
        left = start(second, words, undisturbed, AWAIT=str(hanging), **srun(1))
        wait_for_a_record(left, tmp_path / "out")
        first.kill()
        said, _ = left.communicate(timeout=240)
        assert left.returncode != 0 and "run the same command again" in said.lower()
        assert 0 < len(records(tmp_path / "out")) < SHARDS
        again = second.run(words, environment(), timeout=240)
    summary_of(again)
    assert files(tmp_path / "out") == files(undisturbed / "out")


def test_a_node_joins_an_elastic_fleet_and_is_lost(undisturbed, tmp_path):
    launcher = ["--nnodes", "1:2", "--nproc_per_node", "1", "--max-restarts", "3", "--rdzv_backend", "c10d"]
    rendezvous = ["--rdzv_endpoint", "host0:29400", "--rdzv_id", "fleet", "--rdzv_conf", "last_call_timeout=1"]
    words = command(undisturbed, tmp_path / "out", ("torch.distributed.run", *launcher, *rendezvous))
    hanging = tmp_path / "hanging"
    with network_hosts(2) as (first, second):
        at_first = {"AWAIT": str(hanging), "FREE_UNTIL_RECORD": str(tmp_path / "out")}
        survivor = start(first, words, undisturbed, **at_first, **OWN_STORE)
        wait_for_a_record(survivor, tmp_path / "out")
        start(second, words, undisturbed, HANG=str(hanging), **OWN_STORE)
        wait_for(hanging)
        second.kill()
        # torchrun itself waits five more minutes for the lost node before it ends.
        line = next(line for line in survivor.stdout if line.startswith("{"))
    summary = json.loads(line)
    assert (summary["processes"], summary["processes_lost"]) == (2, 1)
    assert 0 < summary["shards_done_before"] < SHARDS
    assert files(tmp_path / "out") == files(undisturbed / "out")


def test_a_lost_job_of_an_array_can_run_again_on_another_node(undisturbed, tmp_path):
    words, hanging = command(undisturbed, tmp_path / "out", more=("--worker_count", "2")), tmp_path / "hanging"
    with network_hosts(2) as (first, second):
        start(second, words, undisturbed, HANG=str(hanging), JOB_COMPLETION_INDEX="1")
        wait_for(hanging)
        second.kill()
        for index, shards in (("0", SHARDS // 2), ("1", SHARDS // 2)):
            done = first.run(words, environment(JOB_COMPLETION_INDEX=index), timeout=240)
            assert summary_of(done)["shards"] == shards
    assert files(tmp_path / "out") == files(undisturbed / "out")
