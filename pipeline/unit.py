"""One unit of work: source files in, one published episode shard and its record out.

A unit runs in whatever process the runner chose, perhaps on another machine, and says how it went through the output folder
alone: a record where it went well, a `.failed` file with the reason where it could not be done.
"""

import collections
import json
from typing import Any

from pipeline import records, storage
from pipeline.episode import Episode
from pipeline.errors import ProjectError
from pipeline.index import ENTRY_COLUMNS
from pipeline.plan import Unit
from pipeline.records import LeftOut, ShardRecord
from pipeline.shards import EpisodeShardWriter
from pipeline.sources.base import Source

_FAILED = ".failed"
_LONGEST_REASON = 300


def run_unit(unit: Unit, source: Source, folder: str) -> None:
    """Make the shard of a unit and publish it in `folder`, then its record; or leave a `.failed` file there.

    Errors in the data or of storage end up in that file. Any other error is a bug and is raised.
    """
    try:
        record = _make_shard(unit, source, folder)
    except (ProjectError, OSError) as error:
        reason = json.dumps(f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error))
        storage.write_bytes(_failure_path(folder, unit.shard), reason.encode())
    else:
        records.write_record(folder, record)


def _make_shard(unit: Unit, source: Source, folder: str) -> ShardRecord:
    left_out: list[LeftOut] = []
    filtered = 0
    actions: collections.Counter[str] = collections.Counter()
    with storage.staged(storage.join(folder, unit.shard)) as staging, EpisodeShardWriter(staging) as writer:
        for file in unit.sources:
            for position, item in source.read(file):
                if isinstance(item, Episode):
                    writer.add(item)
                    actions[item.action_meaning] += 1
                elif item.filtered:
                    filtered += 1
                else:
                    left_out.append(LeftOut(file.file, position, item.reason[:_LONGEST_REASON]))
    return ShardRecord(
        shard=unit.shard,
        fingerprint=records.fingerprint(unit.inputs),
        inputs=unit.inputs,
        samples=len(writer.entries),
        frames=writer.frames,
        bytes=writer.size,
        sha256=writer.sha256,
        left_out=left_out,
        entries=[{name: entry[name] for name in ENTRY_COLUMNS} for entry in writer.entries],
        statistics={"filtered": filtered, "actions": dict(sorted(actions.items()))},
    )


def _failure_path(folder: str, shard: str) -> str:
    return storage.join(folder, shard + _FAILED)


def take_failures(folder: str) -> dict[str, str]:
    """Shard -> why it could not be made, as units left it in `folder`; the files that say so are removed."""
    failures: dict[str, Any] = {}
    for name in storage.list_files(folder):
        if name.endswith(_FAILED):
            path = storage.join(folder, name)
            failures[name.removesuffix(_FAILED)] = str(json.loads(storage.read_bytes(path)))
            storage.remove(path)
    return failures
