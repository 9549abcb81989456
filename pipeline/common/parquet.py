"""Parquet tables next to shards, such as the index and the list of skipped episodes.

Reads through Arrow's own files: Arrow may release a file in a thread that outlives the read. If the release needs the
interpreter (a Python file, or bytes owned by Python) and the program exits at that moment, it aborts or hangs (apache/arrow
issues 34314 and 50482). So a table on an object store is in memory as a file too.
"""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common import storage
from pipeline.common.errors import ShardError


def write_table(path: str, table: pa.Table) -> None:
    """Publishes a table at a path or URL, whole or not at all. Equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(path, buffer.getvalue())


def read_table(
    path: str, columns: Sequence[str] | None = None, filters: Sequence[tuple[str, str, object]] | None = None
) -> pa.Table:
    """Reads a table, or a part of it.

    Args:
        path: Path or URL.
        columns: Names of the columns to read; None reads all.
        filters: Row filters for `pyarrow.parquet.read_table`.

    Raises:
        ShardError: The file does not exist or can't be read.
    """
    try:
        with _open(path) as file:
            return pq.read_table(file, columns=None if columns is None else list(columns), filters=filters)
    except (OSError, pa.ArrowInvalid) as error:
        raise ShardError(f"{path} can't be read ({error}); run ivideogpt-ingest again, which writes it again") from error


def _open(path: str) -> pa.NativeFile:
    if storage.is_local(path):
        return pa.OSFile(str(storage.local_path(path)))
    copy = pa.BufferOutputStream()
    copy.write(storage.read_bytes(path))
    return pa.BufferReader(copy.getvalue())
