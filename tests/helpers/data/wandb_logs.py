"""Reads what runs of Weights & Biases left on disk without a connection."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

_PATIENCE = 60  # seconds; a service writes the files after its client has gone on


def logged(folder: Path, runs: int) -> tuple[set[str], list[dict[str, object]], list[int]]:
    """Run ids, rows of history and exit codes of the offline runs in a folder, once so many of them are written down."""
    for _ in range(_PATIENCE * 10):
        found = _logged(folder)
        if len(found[2]) == runs:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{folder} doesn't hold {runs} runs that have ended: {found}")


def _logged(folder: Path) -> tuple[set[str], list[dict[str, object]], list[int]]:
    from wandb.proto.wandb_internal_pb2 import Record

    ids, rows, exits = set(), [], []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in _records(path.read_bytes()):
            record = Record.FromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
            elif kind == "history":
                items = record.history.item
                rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
            elif kind == "exit":
                exits.append(record.exit.exit_code)
    return ids, rows, exits


def _records(log: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, whose first block begins with a header of 7 bytes."""
    at, whole = 7, b""
    while at < len(log):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        if at + 7 > len(log):
            return
        length, kind = struct.unpack_from("<HB", log, at + 4)
        if at + 7 + length > len(log):
            return
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""
