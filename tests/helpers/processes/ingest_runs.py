"""Runs the ingest command in warm processes, and checks what they leave."""

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import warm
from rlds_data import NAME, episode, write_set

from pipeline.episodes.frames import encode_jpeg

SHARDS = 12
# In one process, which is where bytes must not differ from those of several.
ALONE = ("--", "--direct_running_mode=in_memory", "--direct_num_workers=1")

_EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir")
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2


def write_source(root: Path) -> Path:
    """A data set whose files become a shard each; its version folder."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 160, 3), dtype=np.uint8)
    images = [encode_jpeg(pixels) for pixels in noise]
    made = [episode(seed, frames=25, image=lambda t, seed=seed: images[(seed + t) % 8]) for seed in range(SHARDS)]
    return write_set(root, made, per_shard=1)


def arguments(source: Path, output: Path, *more: str) -> list[str]:
    described = ["--dataset", NAME, "--camera", "image", "--rate", "10", "--source", str(source), "--output", str(output)]
    return [*described, "--data.shard_mib", "1", "--data.frames", "source", *more]


def hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file in a folder and below it, hidden ones too."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_visible(folder: Path, whole: dict[str, str]) -> int:
    """That every shard and record with its final name is what an uninterrupted run leaves there; how many records there are."""
    found = {path.name: path for split in ("train", "val") for path in folder.rglob(f"{split}-*")}
    for name, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == whole[name], name
    records = [name for name in found if name.endswith(".json")]
    assert all(name.replace(".json", ".tar") in found for name in records)
    return len(records)


def failed(done: subprocess.CompletedProcess) -> str:
    """What the command says on its way out, which is no traceback."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def summary(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ingest(source: Path, output: Path, *more: str, prepare: Callable[[], object] | None = None) -> subprocess.CompletedProcess:
    """Run the command to its end in a warm process.

    Args:
        source: See `write_source`.
        output: The output folder.
        more: More arguments.
        prepare: What the process does to itself before it runs the command; must be picklable.
    """
    command = [sys.executable, "-m", "pipeline", *arguments(source, output, *more, *ALONE)]
    return warm.run(command, preexec_fn=prepare, capture_output=True, text=True)


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
        if event not in _EVENTS or not str(given[0]).startswith(self.output):
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


def obey_permissions() -> None:
    """Give up root's right to pass over the permissions of files; others never have it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        sets[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
        libc.capset(header, sets)
