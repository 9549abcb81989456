"""Verifies shards against their manifests: either the size only, or every byte and every sample.

A full verification hashes and counts in a single pass. Local shards are verified by processes, because hashing needs the CPU;
shards on an object store by threads, which mostly wait for the network.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import IO

import numpy as np
import pyarrow as pa

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.common.manifests import ShardManifest, manifest_path, read_manifest
from pipeline.episodes.index import INDEX_FILE, equal_keys, read_index
from pipeline.episodes.shards import count_samples
from pipeline.processes.child_processes import process_pool
from pipeline.processes.cpus import usable_cpus

_THREADS = 16
_BLOCK = 1 << 20
# The commands that make shards compare sizes only, so they would consider such a shard done.
_REMAKE = ": delete both, and rerun the command that made them"


class _HashingReader:
    """Reads a file once from its beginning, and hashes what it reads."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data

    def drain(self) -> None:
        while self.read(_BLOCK):
            pass


def faults_of(folder: str, shards: Sequence[str], every_byte: bool) -> Iterator[tuple[str, str | None]]:
    """Yield (shard, its fault or None) for each shard, in order, as soon as it is verified.

    Args:
        folder: Folder of the shards.
        shards: File names of the shards.
        every_byte: Read whole shards; otherwise compare sizes only.
    """
    with _executor(folder, len(shards), every_byte) as pool:
        paths = [storage.join(folder, shard) for shard in shards]
        yield from zip(shards, pool.map(fault_of, paths, [every_byte] * len(paths)), strict=True)


def _executor(folder: str, shards: int, every_byte: bool) -> AbstractContextManager[Executor]:
    if not every_byte or not storage.is_local(folder):
        return ThreadPoolExecutor(_THREADS)
    return process_pool(max(1, min(shards, usable_cpus())), "forkserver")


def fault_of(path: str, every_byte: bool) -> str | None:
    """Return the fault of the shard at `path`, or None; see `faults_of`."""
    if not storage.exists(manifest_path(path)):
        return f"{path} has no manifest, so it is unfinished: rerun the command that makes it"
    if not storage.exists(path):
        return f"{path} is missing, but its manifest exists: rerun the command that made it"
    try:
        manifest = read_manifest(manifest_path(path))
        if storage.size(path) != manifest.bytes:
            return (
                f"{path} has {storage.size(path)} bytes, but its manifest says {manifest.bytes}: rerun the command that made it"
            )
        return _content_fault(path, manifest) if every_byte else None
    except (ShardError, OSError) as error:
        return str(error)


def _content_fault(path: str, manifest: ShardManifest) -> str | None:
    samples, damage = None, None
    with storage.open_read(path) as opened:
        file = _HashingReader(opened)
        try:
            samples = count_samples(file, path) if path.endswith(".tar") else None
        except ShardError as error:
            damage = str(error)
        file.drain()
    if (actual := file.digest.hexdigest()) != manifest.sha256:
        return f"{path} has the SHA-256 {actual}, but its manifest says {manifest.sha256}{_REMAKE}"
    if damage is not None:
        return damage
    if samples is None:
        samples, not_finite = _rows(path)
        if not_finite:
            return (
                f"{path} has {not_finite} rows with actions or rewards that are NaN or infinite: delete it and its manifest, "
                "and rerun ivideogpt-tokenize, which leaves such episodes out"
            )
    elif len(manifest.entries) != samples or sum(entry["num_frames"] for entry in manifest.entries) != manifest.frames:
        return f"{manifest_path(path)} contradicts itself: delete it and {path}, and make them again"
    if samples == manifest.samples:
        return None
    return f"{path} holds {samples} samples, but its manifest says {manifest.samples}{_REMAKE}"


def _rows(path: str) -> tuple[int, int]:
    """Return the number of rows of a token shard, and of rows with an action or reward that is not finite."""
    rows = not_finite = 0
    try:
        with storage.open_read(path) as file, pa.ipc.open_file(file) as reader:
            for batch in map(reader.get_batch, range(reader.num_record_batches)):
                rows += batch.num_rows
                bad = np.zeros(batch.num_rows, bool)
                for name in ("action", "reward"):
                    if name in batch.schema.names and batch.num_rows:
                        values = batch.column(name).flatten().to_numpy(zero_copy_only=False)
                        bad |= ~np.isfinite(values).reshape(batch.num_rows, -1).all(axis=1)
                not_finite += int(bad.sum())
            return rows, not_finite
    except pa.ArrowInvalid as error:
        raise ShardError(f"{path} is not an Arrow file ({error}): make it again") from error


def index_fault(folder: str, manifests: Sequence[ShardManifest]) -> str | None:
    """Return the fault of the index of a folder of episode shards, or None if it has one row per episode."""
    path = storage.join(folder, INDEX_FILE)
    if not storage.exists(path):
        return f"{path} doesn't exist: rerun ivideogpt-ingest, which writes it again"
    try:
        rows = read_index(folder, ["shard", "key", "source_file"])
    except ShardError as error:
        return str(error)
    indexed = set(zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True))
    listed = {(manifest.shard, entry["key"]) for manifest in manifests for entry in manifest.entries}
    if indexed != listed or rows.num_rows != len(listed):
        return (
            f"{path} has {rows.num_rows} rows, but the manifests list {len(listed)} episodes, {len(indexed & listed)} of which "
            "are in the index: rerun ivideogpt-ingest, which writes it again"
        )
    if (duplicate := equal_keys(rows)) is not None:
        return f"{path}: {duplicate}. Held-out episodes are chosen by key: ingest again into another folder"
    return None
