"""Running the ingest command as real processes, warm or cold, and looking at what they left behind."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from rlds_data import NAME, episode, write_set

from pipeline.frames import encode_jpeg

SHARDS = 12
# In one process, which is where bytes must not differ from those of several.
ALONE = ("--", "--direct_running_mode=in_memory", "--direct_num_workers=1")


def write_source(root: Path) -> Path:
    """A data set whose files become a shard each; its version folder."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 160, 3), dtype=np.uint8)
    images = [encode_jpeg(pixels) for pixels in noise]
    made = [episode(seed, frames=25, image=lambda t, seed=seed: images[(seed + t) % 8]) for seed in range(SHARDS)]
    return write_set(root, made, per_shard=1)


def arguments(source: Path, output: Path, *more: str) -> list[str]:
    described = ["--dataset", NAME, "--camera", "image", "--rate", "10", "--source", str(source), "--output", str(output)]
    return [*described, "--data.shard_mib", "1", "--data.frames", "source", *more]


def ingest(source: Path, output: Path, *more: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess:
    """Run the command to its end; `before` may make it run as someone else, or with less."""
    whole = [*before, sys.executable, "-m", "pipeline", *arguments(source, output, *more, *ALONE)]
    return subprocess.run(whole, capture_output=True, text=True, timeout=300, check=False)


def hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file in a folder and below it, hidden ones too."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_visible(folder: Path, whole: dict[str, str]) -> int:
    """That whatever has a final name is what an uninterrupted run leaves under it; how many records there are."""
    found = {path.name: path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".partial")}
    for name, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == whole[name], name
    records = [name for name in found if name.endswith(".json") and name != "dataset.json"]
    assert all(name.replace(".json", ".tar") in found for name in records)
    return len(records)


def failed(done: subprocess.CompletedProcess) -> str:
    """What the command says on its way out, which is no traceback."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def summary(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _main(given: list[str]) -> None:
    from pipeline.__main__ import main

    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        os.dup2(nowhere.fileno(), 2)
        sys.exit(main(given))


class WarmCommand:
    """Starts the command in processes that have everything imported already: forks of a server that does no more than fork."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["apache_beam", "pipeline.__main__", "pipeline.sources.rlds", "pyarrow.parquet"])

    def start(self, given: list[str]) -> BaseProcess:
        process = self._context.Process(target=_main, args=(given,), daemon=True)
        process.start()
        return process
