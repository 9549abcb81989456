"""Runs the tokenize command in warm processes, finds its parts, and compares its output with an undisturbed run's."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import warm

SHARDS = 8
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(output: Path) -> list[Path]:
    return sorted(output.glob("made_up/train-*.json"))


def command(folder: Path, output: Path, launcher: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> list[str]:
    """The command over `folder/eps` with `folder/tok`, alone or under a launcher (arguments after `python -m`)."""
    paths = ["--shards", str(folder / "eps"), "--tokenizer", str(folder / "tok"), "--output", str(output)]
    module = [*launcher, "-m", "tokenize_offline"] if launcher else ["tokenize_offline"]
    return [sys.executable, "-m", *module, *paths, "--clips.length", "6", "--clips.held_out", "0.2", *more]


def run(folder: Path, output: Path, launcher: tuple[str, ...] = (), more: tuple[str, ...] = (), **options):
    """Run the command to its end; returns the completed process."""
    options = {"env": environment(), "capture_output": True, "text": True} | options
    return warm.run(command(folder, output, launcher, more), **options)


def summary_of(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def wait_for_a_record(process: subprocess.Popen, output: Path) -> None:
    deadline = time.monotonic() + 240
    while not records(output):
        assert process.poll() is None and time.monotonic() < deadline, "ended before it published anything"
        time.sleep(0.005)


def children(process: int) -> list[int]:
    """Processes that a process started, in the order of their numbers."""
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except FileNotFoundError:
        return []
    return sorted(map(int, text.split()))


def descendants(process: int) -> list[int]:
    return [one for child in children(process) for one in (child, *descendants(child))]


def still_running(processes: list[int], seconds: float = 20.0) -> list[int]:
    """Those that are still there after that time at most."""
    deadline = time.monotonic() + seconds
    while (left := [one for one in processes if Path(f"/proc/{one}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
