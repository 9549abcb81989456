"""Running the ingest command as real processes, warm or cold, and looking at what they left behind."""

import ctypes
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from rlds_data import NAME, episode, write_set

from pipeline.frames import encode_jpeg

SHARDS = 12
# In one process, which is where bytes must not differ from those of several.
ALONE = ("--", "--direct_running_mode=in_memory", "--direct_num_workers=1")

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


def _main(given: list[str], prepare: Callable[[], object] | None, said: Path) -> None:
    from pipeline.__main__ import main

    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with (said / name).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    # The server's own may be closed, or somebody else's.
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if prepare is not None:
        prepare()
    status = main(given)
    sys.stdout.flush()
    sys.exit(status)


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["apache_beam", "pipeline.__main__", "pipeline.sources.rlds", "pyarrow.parquet"])


def started(given: list[str], said: Path, prepare: Callable[[], object] | None = None) -> BaseProcess:
    """The command in a process of its own, a fork of a server that has everything imported and does nothing but fork.

    Args:
        given: Its arguments.
        said: A folder for what it writes to `stdout` and `stderr`.
        prepare: What the process does to itself before it runs the command; must be picklable.
    """
    process = _context.Process(target=_main, args=(given, prepare, said), daemon=True)
    process.start()
    return process


def ingest(source: Path, output: Path, *more: str, prepare: Callable[[], object] | None = None) -> subprocess.CompletedProcess:
    """Run the command to its end; see `started`."""
    with tempfile.TemporaryDirectory() as name:
        process = started(arguments(source, output, *more, *ALONE), Path(name), prepare)
        process.join(300)
        stdout, stderr = (Path(name, stream).read_text() for stream in ("stdout", "stderr"))
    return subprocess.CompletedProcess(more, process.exitcode, stdout, stderr)


def obey_permissions() -> None:
    """Give up root's right to pass over the permissions of files; others never have it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        sets[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
        libc.capset(header, sets)
