"""Parquet tables read back as written, from a disk and from a store, even if the program exits right after."""

import subprocess
import sys

import pyarrow as pa
import pytest

from pipeline.common.errors import ShardError
from pipeline.common.parquet import read_table, write_table

TABLE = pa.table({"key": [f"train-{number}" for number in range(1000)], "frames": pa.array(range(1000), pa.int32())})

PROGRAM = """
import sys
from pipeline.common import storage
from pipeline.common.parquet import read_table
path = sys.argv[1]
if "://" in path:
    storage.write_bytes(path, storage.read_bytes(sys.argv[2]))
print(read_table(path).num_rows, flush=True)
"""


@pytest.mark.parametrize("place", ["{tmp_path}/table.parquet", "memory://tables/table.parquet"])
def test_a_written_table_is_read_whole_or_in_part(place, tmp_path):
    path = place.format(tmp_path=tmp_path)
    write_table(path, TABLE)
    assert read_table(path).equals(TABLE)
    assert read_table(path, ["frames"], [("key", "==", "train-7")]).to_pylist() == [{"frames": 7}]


def test_a_file_that_is_not_a_table_is_an_error_with_a_remedy(tmp_path):
    for content in (b"", b"PAR1", b"PAR1" * 1000):
        (tmp_path / "index.parquet").write_bytes(content)
        with pytest.raises(ShardError, match=r"index.parquet can't be read.*run ivideogpt-ingest again"):
            read_table(str(tmp_path / "index.parquet"))
    with pytest.raises(ShardError, match=r"none.parquet can't be read"):
        read_table(str(tmp_path / "none.parquet"))


@pytest.mark.parametrize("place", ["{tmp_path}/table.parquet", "memory://tables/table.parquet"])
def test_a_program_may_exit_right_after_reading_a_table(place, tmp_path):
    write_table(str(tmp_path / "table.parquet"), TABLE)
    command = [sys.executable, "-c", PROGRAM, place.format(tmp_path=tmp_path), str(tmp_path / "table.parquet")]
    # If Arrow's threads need the interpreter, about every second run fails.
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stdout) == (0, "1000\n"), done.stderr
