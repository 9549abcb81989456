"""What one process makes of a small data set: the measure for every cluster."""

from pathlib import Path

import pytest
from rlds_data import NAME, write_set

from pipeline.config.catalog import dataset
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.job import ingest
from pipeline.ingest.plan import make_plan
from pipeline.ingest.source_lock import LOCK_FILE
from pipeline.sources.locate import open_source


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the lock file, which the command alone writes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != LOCK_FILE}


def source_and_outcome(factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A source of nine shards, and what one process makes of it."""
    folder = write_set(factory.mktemp("source"), episodes=9, per_shard=1, frames=60, height=192, width=256)
    output = factory.mktemp("one process")
    source = open_source(dataset(NAME, "image", 10.0), str(folder), FrameForm("source"))
    ingest(make_plan(source, None, None, 1 << 20), source, NAME, str(output), ["--direct_running_mode=in_memory"], False)
    return folder, contents(output)
