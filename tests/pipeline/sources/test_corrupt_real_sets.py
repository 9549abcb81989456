"""The command ingests damaged real data sets: losses are listed, the rest is kept, and too many losses fail the job."""

import json
import shutil

import pytest

from pipeline import open_shard
from pipeline.__main__ import run
from pipeline.common.errors import SourceError
from pipeline.episodes.skipped import read_skipped

IN_PROCESS = ["--", "--direct_running_mode=in_memory"]


@pytest.mark.parametrize("frames", ["source", "jpeg"])
def test_rt1_with_a_flipped_byte_and_a_lost_file(shared, tmp_path, capsys, frames):
    source = tmp_path / "fractal20220817_data" / "0.1.0"
    shutil.copytree(shared / "data/rlds/fractal20220817_data/0.1.0", source)
    files = sorted(source.glob("*.tfrecord*"))
    data = bytearray(files[0].read_bytes())
    data[len(data) // 3] ^= 1
    files[0].write_bytes(data)
    files[1].unlink()
    command = ["--dataset", "fractal20220817_data", "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    command += ["--data.frames", frames]
    parts = ("3 of 4 episodes were left out", "left_out.parquet", "2 damaged or missing files", "--overwrite")
    with pytest.raises(SourceError, match="[^$]*".join([*parts, f"{files[0].name}, record 0: the checksum"])):
        run([*command, *IN_PROCESS])
    assert run([*command, "--max_bad_fraction", "0.75", *IN_PROCESS]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["episodes"], summary["left_out"], summary["made"], summary["failed"]) == (1, 3, 0, {})
    rows = read_skipped(str(tmp_path / "out/fractal20220817_data")).to_pylist()
    assert [(row["source_file"], row["source_record"], row["kind"]) for row in rows] == [
        (files[0].name, 0, "damaged"),
        (files[1].name, 0, "missing"),
        (files[1].name, 1, "missing"),
    ]
    shards = sorted((tmp_path / "out").rglob("*.tar"))
    assert [e.source_record for shard in shards for e in open_shard(shard)] == [1]


def test_something_something_with_truncated_empty_and_missing_videos(shared, tmp_path, capsys):
    shutil.copytree(shared / "data/video/ssv2", tmp_path / "ssv2")
    videos = sorted((tmp_path / "ssv2").rglob("*.webm"))
    videos[0].write_bytes(videos[0].read_bytes()[: videos[0].stat().st_size // 2])
    videos[1].write_bytes(b"")
    videos[2].unlink()
    command = ["--dataset", "sthsth", "--source", str(tmp_path / "ssv2"), "--output", str(tmp_path / "out"), "--classes", "all"]
    assert run([*command, "--max_bad_fraction", "0.5", *IN_PROCESS]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["episodes"], summary["left_out"]) == (3, 3)
    found = {
        row["source_file"].rsplit("/", 1)[-1]: (row["kind"], row["reason"])
        for row in read_skipped(summary["folder"]).to_pylist()
    }
    assert {name: kind for name, (kind, _) in found.items()} == {
        videos[0].name: "damaged",
        videos[1].name: "damaged",
        videos[2].name: "missing",
    }
    assert "cut short" in found[videos[0].name][1]
