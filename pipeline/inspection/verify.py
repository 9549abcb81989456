"""Whether shards are still what their records say: the size alone, or every byte and every sample.

Reading everything hashes and counts in one pass. Shards on a local disk are shared out to processes, which the hash keeps busy;
those on an object store to threads, which wait for the network.
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
# Sizes alone are compared by the command that makes shards, so it would take such a one for done.
_ANEW = ": delete both, and run the command that made them again"


class _HashedFile:
    """A file that is read once from its beginning, and hashed on the way."""

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
    """(shard, what is wrong with it or None) of the shards of a folder, in order, as they are done.

    Args:
        folder: Where they lie.
        shards: Their file names.
        every_byte: Read all of them; otherwise sizes alone are compared.
    """
    with _executor(folder, len(shards), every_byte) as pool:
        paths = [storage.join(folder, shard) for shard in shards]
        yield from zip(shards, pool.map(fault_of, paths, [every_byte] * len(paths)), strict=True)


def _executor(folder: str, shards: int, every_byte: bool) -> AbstractContextManager[Executor]:
    if not every_byte or not storage.is_local(folder):
        return ThreadPoolExecutor(_THREADS)
    return process_pool(max(1, min(shards, usable_cpus())), "forkserver")


def fault_of(path: str, every_byte: bool) -> str | None:
    """What is wrong with the shard at `path`, or None; see `faults_of`."""
    if not storage.exists(manifest_path(path)):
        return f"{path} has no record: it was not finished, so run the command that makes it again"
    if not storage.exists(path):
        return f"{path} is gone, though its record is there: run the command that made it again"
    try:
        record = read_manifest(manifest_path(path))
        if storage.size(path) != record.bytes:
            return f"{path} has {storage.size(path)} bytes, its record says {record.bytes}: run the command that made it again"
        return _fault_inside(path, record) if every_byte else None
    except (ShardError, OSError) as error:
        return str(error)


def _fault_inside(path: str, record: ShardManifest) -> str | None:
    samples, damage = None, None
    with storage.open_read(path) as opened:
        file = _HashedFile(opened)
        try:
            samples = count_samples(file, path) if path.endswith(".tar") else None
        except ShardError as error:
            damage = str(error)
        file.drain()
    if (actual := file.digest.hexdigest()) != record.sha256:
        return f"{path} has the SHA-256 {actual}, its record says {record.sha256}{_ANEW}"
    if damage is not None:
        return damage
    if samples is None:
        samples, not_finite = _rows(path)
        if not_finite:
            return (
                f"{path} has {not_finite} rows with actions or rewards that are NaN or infinite: delete it and its record, and "
                "run ivideogpt-tokenize again, which leaves such episodes out"
            )
    elif len(record.entries) != samples or sum(entry["num_frames"] for entry in record.entries) != record.frames:
        return f"{manifest_path(path)} contradicts itself: delete it and {path}, and make them again"
    return None if samples == record.samples else f"{path} holds {samples} samples, its record says {record.samples}{_ANEW}"


def _rows(path: str) -> tuple[int, int]:
    """Rows of a token shard, and how many of them have an action or a reward that is not finite."""
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
        raise ShardError(f"{path} is no Arrow file ({error}): make it again") from error


def index_fault(folder: str, records: Sequence[ShardManifest]) -> str | None:
    """What is wrong with the index of a folder of episode shards, or None: a row for every episode of every shard."""
    path = storage.join(folder, INDEX_FILE)
    if not storage.exists(path):
        return f"{path} is not there: run ivideogpt-ingest again, which writes it anew"
    try:
        rows = read_index(folder, ["shard", "key", "source_file"])
    except ShardError as error:
        return str(error)
    indexed = set(zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True))
    recorded = {(record.shard, entry["key"]) for record in records for entry in record.entries}
    if indexed != recorded or rows.num_rows != len(recorded):
        return (
            f"{path} has {rows.num_rows} rows, {len(indexed & recorded)} of them of the {len(recorded)} episodes that the "
            "shards' records list: run ivideogpt-ingest again, which writes it anew"
        )
    if (twice := equal_keys(rows)) is not None:
        return f"{path}: {twice}. Held-out episodes go by their keys: ingest again into another folder"
    return None
