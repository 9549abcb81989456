"""Tables that lie beside shards as Parquet files: an index, a ledger.

They are read through files of Arrow's own. Arrow lets go of a file in a thread that may outlive the reading. Where that takes
the interpreter (a Python file, or bytes that Python holds) and the program ends at that moment, it aborts or hangs
(apache/arrow, issues 34314 and 50482). The price is that a table on an object store is in memory as a file too.
"""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common import storage
from pipeline.common.errors import ShardError


def write_table(path: str, table: pa.Table) -> None:
    """Publish a table under a path or URL, whole or not at all. Equal tables give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(path, buffer.getvalue())


def read_table(path: str, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
    """A table, or a part of it.

    Args:
        path: Path or URL.
        columns: Names of those wanted; None takes all.
        filters: As `pyarrow.parquet.read_table` takes them.

    Raises:
        ShardError: There is none, or it can't be read.
    """
    try:
        with _open(path) as file:
            return pq.read_table(file, columns=None if columns is None else list(columns), filters=filters)
    except (OSError, pa.ArrowInvalid) as error:
        raise ShardError(f"{path} can't be read ({error}); run ivideogpt-ingest again, which writes it anew") from error


def _open(path: str) -> pa.NativeFile:
    if storage.is_local(path):
        return pa.OSFile(str(storage.local_path(path)))
    copy = pa.BufferOutputStream()
    copy.write(storage.read_bytes(path))
    return pa.BufferReader(copy.getvalue())
