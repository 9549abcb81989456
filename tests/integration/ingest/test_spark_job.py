"""Ingest on Spark's local mode with two workers gives the result of one process. Needs PySpark and Java."""

import shutil
import subprocess
import sys

import pytest
from one_process import contents
from rlds_data import write_set


@pytest.mark.soak
def test_spark_makes_the_same_files_as_one_process_and_a_second_run_does_nothing(tmp_path):
    pytest.importorskip("pyspark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    source = write_set(tmp_path, episodes=6, per_shard=1, frames=30, height=192, width=256, name="bridge")
    options = ["--dataset", "bridge", "--source", str(source), "--data.frames", "source", "--data.shard_mib", "1"]

    def run(output: str, *more: str) -> str:
        command = [sys.executable, "-m", "pipeline", *options, "--output", str(tmp_path / output), *more]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run("one", "--", "--direct_running_mode=in_memory")
    assert '"made": 7' in run("spark", "--spark", "local[2]")
    assert contents(tmp_path / "one" / "bridge") == contents(tmp_path / "spark" / "bridge")
    assert '"made": 0' in run("spark", "--spark", "local[2]")
