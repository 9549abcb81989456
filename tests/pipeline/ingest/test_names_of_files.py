"""Files with any name are read, and the key of an episode depends only on its own file."""

import json
import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.common import storage
from pipeline.common.errors import ConflictError, SourceError
from pipeline.common.manifests import fingerprint, read_manifest
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm
from pipeline.episodes.index import read_manifests, write_index
from pipeline.ingest import job
from pipeline.ingest.plan import make_plan
from pipeline.ingest.source_lock import LOCK_FILE
from pipeline.ingest.work_unit import UnitJob, collect_failures, run_unit, write_failure
from pipeline.inspection.inspect import main as inspect
from pipeline.sources.npz.source import NpzSource

ENTRY = DatasetEntry("mine", "", "image", control_hz=10.0)
# Running in this process makes the test fast.
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


def test_an_added_file_gets_a_new_shard_and_changes_no_key(tmp_path, capsys):
    source = write_episodes(tmp_path / "source", ["a.npz", "c.npz", "d.npz"])
    assert ingest(source, tmp_path / "out") == 0
    before = keys_by_file(tmp_path / "out")
    shard = tmp_path / "out" / "mine" / "train-000000.tar"
    data = shard.read_bytes()
    write_episodes(source, ["b.npz"])
    assert ingest(source, tmp_path / "out") == 0, capsys.readouterr().err
    after = keys_by_file(tmp_path / "out")
    assert before.items() < after.items() and after.keys() == {"a.npz", "b.npz", "c.npz", "d.npz"}
    assert shard.read_bytes() == data
    assert [item["file"] for item in read_manifest(str(shard.with_name("train-000001.json"))).inputs["sources"]] == ["b.npz"]
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


def test_files_with_any_name_become_episodes_with_valid_manifests(tmp_path, capsys):
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


def test_a_damaged_file_with_an_odd_name_is_left_out_with_its_reason(tmp_path, capsys):
    source = write_episodes(tmp_path / "source", [b"a.npz"])
    (Path(source) / os.fsdecode(b"caf\xe9::.npz")).write_bytes(b"PK\3\4 but no more")
    assert ingest(source, tmp_path / "out", "--max_bad_fraction", "1") == 0, capsys.readouterr().err
    (row,) = pq.read_table(tmp_path / "out" / "mine" / "left_out.parquet").to_pylist()
    assert row["source_file"] == r"caf\udce9::.npz" and row["kind"] == "damaged"


def test_a_removed_file_is_refused_until_overwrite_drops_it_and_keeps_the_other_shards(tmp_path, capsys, caplog):
    source = write_episodes(tmp_path / "source", ["a.npz", "b.npz"])
    assert ingest(source, tmp_path / "out") == 0
    for added in ("c.npz", "d.npz"):
        write_episodes(source, [added])
        assert ingest(source, tmp_path / "out") == 0
    before = keys_by_file(tmp_path / "out")
    folder = tmp_path / "out" / "mine"
    kept = {name: (folder / name).read_bytes() for name in ("train-000002.tar", "train-000002.json")}
    (source / "a.npz").unlink()
    (source / "c.npz").unlink()
    capsys.readouterr()
    assert ingest(source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "a.npz (gone), c.npz (gone)" in error and "--overwrite" in error
    assert keys_by_file(tmp_path / "out") == before
    assert ingest(source, tmp_path / "out", "--overwrite") == 0
    assert "train-000001.tar is removed: none of its source files exists any more" in caplog.text
    assert keys_by_file(tmp_path / "out") == {name: before[name] for name in ("b.npz", "d.npz")}
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert inspect([str(tmp_path / "out"), "--verify"]) == 0


def test_a_key_does_not_depend_on_where_the_folder_lies(tmp_path):
    names = ["a.npz", "b.npz"]
    original, copy = write_episodes(tmp_path / "original", names), write_episodes(tmp_path / "copy", ["0.npz", *names])
    keys = {}
    for folder in (str(original), str(copy), f"file://{copy}"):
        for file in NpzSource(folder, ENTRY, FrameForm("png")).plan():
            keys.setdefault(file.file, set()).add(file.key(0))
    assert [len(keys[name]) for name in names] == [1, 1]


def test_two_files_that_would_give_the_same_key_are_refused_by_name(tmp_path, monkeypatch):
    source = write_episodes(tmp_path / "source", ["a.npz", "b.npz"])
    monkeypatch.setattr("pipeline.sources.base.hashed_key", lambda split, file, record: f"{split}-same-{record:06d}")
    with pytest.raises(SourceError, match=r"'a\.npz' and 'b\.npz' would both give an episode with the key train-same-000000"):
        make_plan(NpzSource(str(source), ENTRY, FrameForm("png")), None, None, 1)


def test_equal_keys_are_refused_when_the_index_is_written_and_found_by_verify(tmp_path, capsys):
    assert ingest(write_episodes(tmp_path / "source", ["a.npz"]), tmp_path / "out") == 0
    folder = tmp_path / "out" / "mine"
    copied = folder / "train-000001.tar"
    shutil.copyfile(folder / "train-000000.tar", copied)
    manifest = json.loads((folder / "train-000000.json").read_text())
    manifest["shard"] = copied.name
    (folder / "train-000001.json").write_text(json.dumps(manifest))
    key = keys_by_file(tmp_path / "out")["a.npz"]
    with pytest.raises(ConflictError, match=f"two episodes have the key {key}: a.npz in train-000000.tar and a.npz in train"):
        write_index(str(folder), "mine", read_manifests(str(folder)), [])
    table = pq.read_table(folder / "index.parquet")
    rows = [{**row, "shard": shard} for shard in ("train-000000.tar", copied.name) for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "index.parquet")
    capsys.readouterr()
    assert inspect([str(tmp_path / "out"), "--verify"]) == 1
    assert f"two episodes have the key {key}" in capsys.readouterr().err


def test_shards_of_an_earlier_format_are_refused_with_advice_and_overwrite_remakes_them(tmp_path, capsys):
    source = write_episodes(tmp_path / "source", ["a.npz"])
    assert ingest(source, tmp_path / "out") == 0
    path = tmp_path / "out" / "mine" / "train-000000.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"]["format"] = 1
    manifest["fingerprint"] = fingerprint(manifest["inputs"])
    path.write_text(json.dumps(manifest))
    capsys.readouterr()
    assert ingest(source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "earlier version" in error and "another --output" in error and "--overwrite" in error and "token shards" in error
    assert ingest(source, tmp_path / "out", "--overwrite") == 0
    assert json.loads(path.read_text())["inputs"]["format"] == 2


def opened_while(monkeypatch, call):
    """Return the result of a call and the names of the files that it opens or reads."""
    opened = []
    for name in ("open_read", "read_range"):
        real = getattr(storage, name)
        monkeypatch.setattr(
            storage, name, lambda path, *more, real=real: opened.append(storage.basename(path)) or real(path, *more)
        )
    result = call()
    monkeypatch.undo()
    return result, opened


def test_a_plan_opens_only_files_whose_listing_does_not_prove_that_they_are_unchanged(tmp_path, monkeypatch, capsys):
    names = [f"{number:02d}.npz" for number in range(8)]
    source = write_episodes(tmp_path / "source", names)
    opened = opened_while(monkeypatch, lambda: make_plan(NpzSource(str(source), ENTRY, FrameForm("png")), None, None, 1))[1]
    assert set(opened) <= set(names[:3])  # the plan estimates the size of shards from the first few files
    assert ingest(source, tmp_path / "out") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "mine").iterdir()}
    code, opened = opened_while(monkeypatch, lambda: ingest(source, tmp_path / "out"))
    assert code == 0 and not {*names[3:]} & {*opened}
    os.utime(source / "05.npz", (1, 1))
    code, opened = opened_while(monkeypatch, lambda: ingest(source, tmp_path / "out"))
    assert code == 0 and {*names[3:]} & {*opened} == {"05.npz"}
    changed = {path.name for path, data in before.items() if path.read_bytes() != data}
    assert changed == {LOCK_FILE}
    data = bytearray((source / "06.npz").read_bytes())
    stat = (source / "06.npz").stat()
    data[300] ^= 1
    (source / "06.npz").write_bytes(data)
    os.utime(source / "06.npz", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    capsys.readouterr()
    assert ingest(source, tmp_path / "out") == 1
    assert "rewritten in place" in (error := capsys.readouterr().err) and "06.npz" in error


def test_a_changed_file_is_detected_without_the_lock_file_too(tmp_path, capsys):
    source = write_episodes(tmp_path / "source", ["a.npz", "b.npz"])
    assert ingest(source, tmp_path / "out") == 0
    (tmp_path / "out" / "mine" / LOCK_FILE).unlink()
    data = bytearray((source / "b.npz").read_bytes())
    data[300] ^= 1
    (source / "b.npz").write_bytes(data)
    capsys.readouterr()
    assert ingest(source, tmp_path / "out") == 1
    assert "sources[1].ends_sha256" in capsys.readouterr().err


def test_a_file_that_disappears_during_planning_is_left_out_and_not_expected_again(tmp_path, monkeypatch, capsys):
    source = write_episodes(tmp_path / "source", [f"{number}.npz" for number in range(5)])
    real = NpzSource.plan

    def plan(self):
        files = real(self)
        (source / "4.npz").unlink(missing_ok=True)
        return files

    monkeypatch.setattr(NpzSource, "plan", plan)
    assert ingest(source, tmp_path / "out", "--max_bad_fraction", "1") == 0, capsys.readouterr().err
    (row,) = pq.read_table(tmp_path / "out" / "mine" / "left_out.parquet").to_pylist()
    assert (row["source_file"], row["kind"]) == ("4.npz", "missing")
    assert ingest(source, tmp_path / "out") == 0, capsys.readouterr().err
    assert len(keys_by_file(tmp_path / "out")) == 4


def test_two_ingests_into_one_folder_keep_each_others_failures(tmp_path):
    write_failure(str(tmp_path), "train-000000.tar", "mine")
    write_failure(str(tmp_path), "val-000000.tar", "another's")
    assert collect_failures(str(tmp_path), {"train-000000.tar"}) == {"train-000000.tar": "mine"}
    assert collect_failures(str(tmp_path), {"val-000000.tar"}) == {"val-000000.tar": "another's"}


def test_the_run_that_ends_last_keeps_the_shards_of_the_other(tmp_path, monkeypatch):
    source = write_episodes(tmp_path / "source", ["train_eps_0.npz", "val_eps_0.npz"])
    real = job.write_skipped

    def write_skipped(*arguments):
        """Let another run end between this run's listing and its write."""
        monkeypatch.setattr(job, "write_skipped", real)
        assert ingest(source, tmp_path / "out", "--splits", "val") == 0
        index = pq.read_table(tmp_path / "out" / "mine" / "index.parquet")
        assert len(index) == 2
        pq.write_table(index.slice(0, 1), tmp_path / "out" / "mine" / "index.parquet")
        real(*arguments)

    monkeypatch.setattr(job, "write_skipped", write_skipped)
    assert ingest(source, tmp_path / "out", "--splits", "train") == 0
    assert set(keys_by_file(tmp_path / "out")) == {"train_eps_0.npz", "val_eps_0.npz"}


def test_shards_that_another_run_failed_to_make_stay_in_the_summary(tmp_path):
    source = write_episodes(tmp_path / "source", ["train_eps_0.npz", "val_eps_0.npz"])
    assert ingest(source, tmp_path / "out", "--splits", "val") == 0
    path = tmp_path / "out" / "mine" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "missing_shards": ["train-000000.tar", "val-000001.tar"]}))
    assert ingest(source, tmp_path / "out", "--splits", "train") == 0
    assert json.loads(path.read_text())["missing_shards"] == ["val-000001.tar"]


def test_the_progress_line_logs_unreadable_manifests_and_continues(tmp_path, caplog):
    source = NpzSource(str(write_episodes(tmp_path / "source", ["a.npz", "b.npz"])), ENTRY, FrameForm("png"))
    units = make_plan(source, None, None, 1)
    output = tmp_path / "out"
    jobs = [UnitJob(unit, source, str(output)) for unit in units]
    run_unit(*jobs[1])
    (output / "train-000000.json").write_text("no record")
    line, stop = mock.Mock(), threading.Event()
    stop.set()
    job._watch(jobs, line, stop)
    assert line.update.call_count == 2
    assert "train-000000.json is not a shard manifest" in caplog.text
