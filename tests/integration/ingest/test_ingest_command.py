"""`ivideogpt-ingest` as a user runs it: the same bytes with any number of workers, no repeated work, helpful errors."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import warm
import webdataset
from rlds_data import NAME, write_set

from pipeline.inspection.inspect import run as inspect

ONE_WORKER = ["--direct_running_mode=multi_processing", "--direct_num_workers=1"]
DESCRIBED = ["--dataset", NAME, "--camera", "image", "--rate", "10"]


def ingest(*arguments, beam=(), home=None):
    command = [sys.executable, "-m", "pipeline", *map(str, arguments), *(["--", *beam] if beam else [])]
    environment = {**os.environ, "HOME": str(home)} if home else None
    return warm.run(command, capture_output=True, text=True, env=environment)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("rlds"), episodes=6, per_shard=1, frames=40, height=96, width=128)


def test_one_and_two_workers_make_the_same_files_and_a_second_run_does_nothing(source, tmp_path):
    common = [*DESCRIBED, "--source", source, "--data.shard_mib", 1]
    one = ingest(*common, "--output", tmp_path / "one", beam=ONE_WORKER)
    assert one.returncode == 0, one.stderr
    by_default = ingest(*common, "--output", tmp_path / "default", home=tmp_path / "home")
    assert by_default.returncode == 0, by_default.stderr
    assert not (tmp_path / "home" / ".apache_beam").exists(), "Beam tried to download a runner"
    assert hashes(tmp_path / "one") == hashes(tmp_path / "default")
    assert len([name for name in hashes(tmp_path / "one") if name.endswith(".tar")]) > 2

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.tar")}
    again = ingest(*common, "--output", tmp_path / "one")
    assert json.loads(again.stdout)["made"] == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.tar")}
    assert inspect([str(tmp_path / "one"), "--verify"]) == 0

    other = ingest(*common, "--output", tmp_path / "one", "--data.frames", "png")
    assert other.returncode == 1 and 'frames.encoding: "jpeg" -> "png"' in other.stderr
    assert "Traceback" not in other.stderr


def test_a_real_data_set_gives_the_same_files_with_one_and_two_workers(shared, tmp_path):
    common = ["--dataset", "fractal20220817_data", "--source", shared / "data" / "rlds", "--data.shard_mib", 1]
    for workers in (1, 2):
        beam = [*ONE_WORKER[:1], f"--direct_num_workers={workers}"]
        done = ingest(*common, "--output", tmp_path / str(workers), beam=beam)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert (summary["episodes"], summary["frames"], summary["left_out"]) == (4, 206, 0)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")
    shards = sorted(str(path) for path in (tmp_path / "1").rglob("*.tar"))
    assert len(shards) == 2
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [sample["json"]["num_frames"] for sample in samples] == [len(s["frames.mp"]) for s in samples] == [29, 54, 66, 57]
    assert all(sample["steps.npz"]["action"].shape == (len(sample["frames.mp"]), 13) for sample in samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--source": "nowhere"}, "nowhere doesn't exist"),
        ({"--dataset": "toy_sat", "--camera": None, "--rate": None}, "'toy_sat' is not in the catalog"),
        ({"--camera": "imege"}, "no camera 'imege' (did you mean 'image'?)"),
        ({"--splits": "tran"}, "no split 'tran'; it has train, val"),
        ({"--data.framez": "png"}, "did you mean --data.frames?"),
        ({"--data.frames": "gif"}, "gif"),
        ({"--max_bad_fraction": "5"}, "--max_bad_fraction must be 0 to 1"),
        ({"--max_episodes": "0"}, "--max_episodes must be at least 1"),
    ],
)
def test_a_wrong_command_is_one_clear_error(source, tmp_path, change, message):
    options = {"--dataset": NAME, "--camera": "image", "--rate": "10", "--source": str(source), "--output": str(tmp_path)}
    options |= change
    done = ingest(*[part for key, value in options.items() if value is not None for part in (key, value)])
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
