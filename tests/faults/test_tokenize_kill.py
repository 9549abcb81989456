"""A process killed at any moment costs at most the shards it held: the same command goes on and ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_episodes import tiny_tokenizer, write_shards

SHARDS = 8


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob("made_up/train-*.json"))


def command(folder: Path, output: Path, launcher: tuple[str, ...] = ()) -> list[str]:
    paths = ["--shards", str(folder / "eps"), "--tokenizer", str(folder / "tok"), "--output", str(output)]
    return [sys.executable, "-m", *launcher, "tokenize_offline", *paths, "--clips.length", "6", "--clips.held_out", "0.2"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny_tokenizer(folder / "tok")
    write_shards(folder / "eps", shards=SHARDS, episodes=4)
    subprocess.run(command(folder, folder / "out"), env=environment(), check=True, timeout=300)
    return folder


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def wait_for_a_record(process: subprocess.Popen, output: Path) -> None:
    deadline = time.monotonic() + 240
    while not records(output):
        assert process.poll() is None and time.monotonic() < deadline, "ended before it published anything"
        time.sleep(0.005)


def finish_and_compare(undisturbed: Path, output: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in records(output)}
    assert 0 < len(before) < SHARDS
    subprocess.run(command(undisturbed, output), env=environment(), check=True, timeout=300)
    assert files(output) == files(undisturbed / "out")
    assert all(path.stat().st_mtime_ns == time_then for path, time_then in before.items()), "a finished shard was made again"


def test_kill_9_and_the_same_command_again_equal_an_undisturbed_run(undisturbed, tmp_path):
    process = subprocess.Popen(command(undisturbed, tmp_path), env=environment())
    wait_for_a_record(process, tmp_path)
    process.kill()
    process.wait()
    finish_and_compare(undisturbed, tmp_path)


def test_kill_9_of_one_process_of_a_fleet_loses_only_what_it_held(undisturbed, tmp_path):
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    process = subprocess.Popen(command(undisturbed, tmp_path, launcher), env=environment())
    wait_for_a_record(process, tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert process.wait(timeout=240) != 0
    finish_and_compare(undisturbed, tmp_path)
