"""Several processes under a launcher make the same bytes as one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from synthetic_episodes import tiny_tokenizer, write_shards

OPTIONS = ["--clips.length", "6", "--clips.views", "2", "--clips.held_out", "0.2", "--tokenizer.clips_per_batch", "4"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(launcher: list[str], shards: Path, tokenizer: Path, output: Path) -> subprocess.CompletedProcess:
    command = [*launcher, "--shards", str(shards), "--tokenizer", str(tokenizer), "--output", str(output), *OPTIONS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return warm.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    tiny_tokenizer(folder / "tok")
    write_shards(folder / "eps", shards=5, episodes=3)
    done = run([sys.executable, "-m", "tokenize_offline"], folder / "eps", folder / "tok", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    "launcher",
    [
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    ],
    ids=["accelerate", "torchrun"],
)
def test_two_processes_make_the_same_bytes_as_one(alone, tmp_path, launcher):
    done = run([sys.executable, "-m", *launcher, "-m", "tokenize_offline"], alone / "eps", alone / "tok", tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.strip().splitlines()
    summary = json.loads(line)
    assert (summary["processes"], summary["shards"]) == (2, 5)
    assert files(tmp_path) == files(alone / "out")


def test_a_mistake_stops_the_whole_fleet_with_one_message(alone, tmp_path):
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "tokenize_offline",
    ]
    done = run(launcher, alone / "nowhere", alone / "tok", tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("no episode shards") == 1
