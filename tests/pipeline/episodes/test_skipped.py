"""The list of skipped episodes has each one once, with place and reason; equal manifests give equal bytes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlds_data import NAME, episode, write_set

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.common.manifests import ShardManifest, SkippedEpisode
from pipeline.common.parquet import read_table, write_table
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm
from pipeline.episodes.naming import shard_name
from pipeline.episodes.skipped import SKIPPED_FILE, read_skipped, write_skipped
from pipeline.ingest.job import ingest
from pipeline.ingest.plan import make_plan
from pipeline.sources.rlds.source import RldsSource

ENTRY = DatasetEntry(NAME, NAME, "image", version="0.1.0", control_hz=10.0, base_step=10.0)
# Any text of JSON and Parquet: file names and reasons come from hostile data.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_LEFT_OUT = st.builds(
    SkippedEpisode,
    _TEXT,
    st.integers(0, 1 << 40),
    _TEXT,
    st.sampled_from(["missing", "damaged", "unusable"]),
    _TEXT,
    st.floats(0, 1e6),
)


def manifest(number: int, left_out: list[SkippedEpisode]) -> ShardManifest:
    return ShardManifest(shard_name("train", number, "tar"), "", {}, 1, 5, 10, "", left_out)


@given(st.lists(st.lists(_LEFT_OUT, max_size=4), max_size=4))
@settings(max_examples=40, deadline=None)
def test_every_skipped_episode_has_a_row_and_equal_manifests_give_equal_bytes(left_out):
    manifests = [manifest(number, items) for number, items in enumerate(left_out)]
    written = set()
    for _ in range(2):
        write_skipped("memory://skipped/set", "set", manifests)
        written.add(storage.read_bytes(f"memory://skipped/set/{SKIPPED_FILE}"))
    assert len(written) == 1
    rows = read_skipped("memory://skipped/set").to_pylist()
    wanted = [(r.shard, item) for r in manifests for item in r.left_out]
    columns = ("source_file", "source_record", "reason", "kind", "key", "episodes")
    assert [(row["shard"], SkippedEpisode(*(row[name] for name in columns))) for row in rows] == wanted
    assert all((row["dataset"], row["split"]) == ("set", "train") for row in rows)


def test_an_ingest_job_writes_shard_place_key_and_reason_of_skipped_episodes(tmp_path):
    broken = episode(1, image=lambda t: b"\xff\xd8\xff" if t == 3 else episode(1)["steps"][t]["observation"]["image"])
    folder = write_set(tmp_path, episodes=[episode(0), broken, episode(2)], per_shard=2)
    source = RldsSource(str(folder), ENTRY, FrameForm("source"))
    output = str(tmp_path / "out")
    in_process = ["--direct_running_mode=in_memory"]
    ingest(make_plan(source, None, None, 1), source, NAME, output, in_process, overwrite=False)
    (row,) = read_skipped(output).to_pylist()
    assert row.pop("reason").startswith("JPEG header is damaged")
    assert row == {
        "dataset": NAME,
        "split": "train",
        "shard": "train-000000.tar",
        "source_file": f"{NAME}-train.tfrecord-00000-of-00002",
        "source_record": 1,
        "key": "train-00000-000001",
        "kind": "damaged",
        "episodes": 1.0,
    }
    before = (tmp_path / "out" / SKIPPED_FILE).read_bytes()
    (tmp_path / "out" / SKIPPED_FILE).write_bytes(b"")
    ingest(make_plan(source, None, None, 1), source, NAME, output, in_process, overwrite=False)
    assert (tmp_path / "out" / SKIPPED_FILE).read_bytes() == before


def test_a_data_set_without_skipped_episodes_has_an_empty_table_with_all_columns():
    write_skipped("memory://skipped/sound", "sound", [manifest(0, [])])
    table = read_skipped("memory://skipped/sound")
    assert table.num_rows == 0 and {"source_file", "source_record", "reason"} <= set(table.column_names)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 no table PAR1"])
def test_a_missing_or_damaged_table_is_an_error_with_a_remedy(tmp_path, content):
    if content is not None:
        (tmp_path / SKIPPED_FILE).write_bytes(content)
    with pytest.raises(ShardError, match=rf"{SKIPPED_FILE} can't be read.*run ivideogpt-ingest again"):
        read_skipped(str(tmp_path))


def test_another_parquet_file_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / SKIPPED_FILE)
    with pytest.raises(ShardError, match="can't be read"):
        read_skipped(str(tmp_path))


def test_an_older_table_without_the_column_episodes_reads_with_one_per_row():
    write_skipped("memory://skipped/old", "set", [manifest(0, [SkippedEpisode("a", 0, "no frames")])])
    path = f"memory://skipped/old/{SKIPPED_FILE}"
    write_table(path, read_table(path).drop_columns("episodes"))
    assert read_skipped("memory://skipped/old").to_pylist()[0]["episodes"] == 1.0
