"""Files of any name are read, and what an episode is called depends on its own file alone."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.__main__ import main
from pipeline.catalog import DatasetEntry
from pipeline.inspection.inspect import main as inspect
from pipeline.lock import LOCK_FILE
from pipeline.records import read_record

ENTRY = DatasetEntry("mine", "", "image", control_hz=10.0)
# In this process, so that the test is quick.
BEAM = ["--", "--direct_running_mode=in_memory", "--direct_num_workers=1"]


def write_episode(path: Path, number: int = 0) -> None:
    generator = np.random.default_rng(number)
    image = generator.integers(0, 256, (3, 16, 16, 3), np.uint8)
    with path.open("wb") as file:
        np.savez(file, image=image, action=np.full((3, 2), number, np.float32))


def write_episodes(folder: Path, names: Iterable[str | bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        write_episode(folder / os.fsdecode(name), sum(os.fsencode(name)))
    return folder


def ingest(source: Path | str, output: Path | str, *more: str) -> int:
    described = ["--dataset", "mine", "--camera", "image", "--rate", "10", "--data.shard_mib", "1"]
    return main([*described, "--source", str(source), "--output", str(output), *more, *BEAM])


def keys_by_file(output: Path) -> dict[str, str]:
    rows = pq.read_table(output / "mine" / "index.parquet", columns=["source_file", "key"]).to_pylist()
    found = {row["source_file"]: row["key"] for row in rows}
    assert len(set(found.values())) == len(rows)
    return found


def test_an_added_file_gets_a_shard_of_its_own_and_changes_no_key(tmp_path, capsys):
    source = write_episodes(tmp_path / "source", ["a.npz", "c.npz", "d.npz"])
    assert ingest(source, tmp_path / "out") == 0
    before = keys_by_file(tmp_path / "out")
    shard = tmp_path / "out" / "mine" / "train-000000.tar"
    made = shard.read_bytes()
    write_episodes(source, ["b.npz"])
    assert ingest(source, tmp_path / "out") == 0, capsys.readouterr().err
    after = keys_by_file(tmp_path / "out")
    assert before.items() < after.items() and after.keys() == {"a.npz", "b.npz", "c.npz", "d.npz"}
    assert shard.read_bytes() == made
    assert [one["file"] for one in read_record(str(shard.with_name("train-000001.json"))).inputs["sources"]] == ["b.npz"]
    assert ingest(source, tmp_path / "elsewhere") == 0
    assert keys_by_file(tmp_path / "elsewhere") == after
    capsys.readouterr()
    assert inspect([str(tmp_path / "out"), "--verify"]) == 0


ODD_NAMES = [
    b"caf\xe9.npz",
    b"a::b.npz",
    b"x::s3:.npz",
    b"file:.npz",
    b"a#b.npz",
    b"a?b=c.npz",
    b"a%20b.npz",
    b"a*b.npz",
    b"a[b].npz",
    b"a{b}.npz",
    b"line\nbreak.npz",
    b"-rf.npz",
    b"~root.npz",
    b"~.npz",
    b" .npz",
    b"two.dots.npz",
    "é.npz".encode(),
    "e\u0301.npz".encode(),
    b"back\\slash.npz",
    b'quo"te.npz',
]


def test_files_of_any_name_become_episodes_with_records_that_every_reader_takes(tmp_path, capsys):
    source = write_episodes(tmp_path / "source", ODD_NAMES)
    assert ingest(source, tmp_path / "out") == 0, capsys.readouterr().err
    assert len(keys_by_file(tmp_path / "out")) == len(ODD_NAMES)
    assert r"caf\udce9.npz" in keys_by_file(tmp_path / "out")
    folder = tmp_path / "out" / "mine"
    for file in [folder / LOCK_FILE, *folder.glob("*.json")]:
        json.loads(file.read_bytes().decode())
    assert ingest(source, tmp_path / "out") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["made"] == 0
    assert inspect([str(tmp_path / "out"), "--verify", "--html", str(tmp_path / "page.html")]) == 0


def test_a_damaged_file_of_an_odd_name_is_left_out_with_its_reason(tmp_path, capsys):
    source = write_episodes(tmp_path / "source", [b"a.npz"])
    (Path(source) / os.fsdecode(b"caf\xe9::.npz")).write_bytes(b"PK\3\4 but no more")
    assert ingest(source, tmp_path / "out", "--max_bad_fraction", "1") == 0, capsys.readouterr().err
    (row,) = pq.read_table(tmp_path / "out" / "mine" / "left_out.parquet").to_pylist()
    assert row["source_file"] == r"caf\udce9::.npz" and row["kind"] == "damaged"
