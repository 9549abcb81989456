"""Inspecting finds missing, truncated, changed and miscounted shards, and prints what a data set holds."""

import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from rlds_data import NAME, episode, write_set

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.common.manifests import ShardManifest, read_manifest, sha256_of, write_manifest
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.frames import FrameForm, encode_jpeg
from pipeline.episodes.skipped import write_skipped
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import run_unit
from pipeline.inspection.inspect import run as inspect
from pipeline.inspection.overview import language_statistics, overview
from pipeline.inspection.verify import fault_of, faults_of, index_fault
from pipeline.sources.rlds.source import RldsSource

ENTRY = DatasetEntry(NAME, NAME, "image", version="0.1.0", control_hz=10.0, base_step=10.0)


def make(tmp_path, output, episodes=5):
    """Write a data set like the ingest does."""
    source = RldsSource(str(write_set(tmp_path, episodes=episodes, per_shard=2)), ENTRY, FrameForm("jpeg", 40))
    for unit in make_plan(source, None, None, 1):
        run_unit(unit, source, output)
    manifests = index.write_index(output, NAME, index.read_manifests(output), [])
    write_skipped(output, NAME, manifests)
    return output


@pytest.fixture
def folder(tmp_path):
    output = tmp_path / "eps" / NAME
    make(tmp_path, str(output))
    return output


def test_an_intact_data_set_has_no_faults_and_its_statistics_are_printed(folder, capsys):
    assert inspect([str(folder.parent), "--verify"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["faults"] == 0 and report["episodes"] == 6 and report["frames"] == 36
    assert report["frames_of_episode"] == {"least": 6, "median": 6, "most": 6}
    assert report["resolutions"] == {"40 x 53": 6} and report["rates_hz"] == {"10": 6}
    assert report["hours"] == pytest.approx(36 / 10 / 3600, abs=1e-4)
    assert report["language"]["share"] == 1 and report["language"]["distinct"] == 5
    assert report["copies"] == 1 and report["quality"]["static_share"]["most"] == 0


def test_a_single_shard_is_inspected_even_without_the_index_of_its_data_set(folder, capsys):
    (folder / "train-000001.tar").unlink()
    first = folder / "train-000000.tar"
    for options in ([], ["--verify"]):
        assert inspect([str(first), *options]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["folder"] == str(folder) and report["splits"]["train"]["shards"] == 1 and report["faults"] == 0
    for name in ("index.parquet", "dataset.json"):
        (folder / name).unlink()
    assert inspect([str(first)]) == 0
    spoil_byte(first)
    assert inspect([str(first), "--verify"]) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert inspect([str(folder / "train-000001.tar")]) == 1
    assert "train-000001.tar is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.tar", r"x\.tar doesn't have the name of a shard, such as train-000000\.tar"),
        ("nowhere", "nowhere doesn't exist"),
        ("", "holds no shards"),
    ],
)
def test_a_path_without_shards_is_an_error_that_says_why(tmp_path, name, message):
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=message):
        inspect([str(tmp_path / name)])


def spoil_byte(path):
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)


def spoil_count(path):
    manifest = read_manifest(str(path.with_suffix(".json")))
    write_manifest(str(path.parent), dataclasses.replace(manifest, samples=manifest.samples + 1))


def spoil_frames(path):
    manifest = read_manifest(str(path.with_suffix(".json")))
    write_manifest(str(path.parent), dataclasses.replace(manifest, frames=manifest.frames - 1))


def spoil_end(path):
    """Remove the last sample of a shard and correct its manifest, except for the counts."""
    manifest = read_manifest(str(path.with_suffix(".json")))
    path.write_bytes(path.read_bytes()[: manifest.entries[-1]["offset"]] + bytes(1024))
    changed = dataclasses.replace(manifest, bytes=path.stat().st_size, sha256=sha256_of(path))
    write_manifest(str(path.parent), changed)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_byte, "has the SHA-256"),
        (spoil_count, "holds 2 samples, but its manifest says 3"),
        (spoil_frames, "contradicts itself"),
        (spoil_end, "contradicts itself"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512]), "bytes, but its manifest says"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.with_suffix(".json").unlink(), "has no manifest"),
        (lambda path: path.with_suffix(".json").write_text("{}"), "is not a shard manifest"),
    ],
)
def test_exactly_the_faulty_shard_is_named_with_what_to_do(folder, spoil, message):
    path = folder / "train-000001.tar"
    spoil(path)
    found = dict(faults_of(str(folder), ["train-000000.tar", path.name, "train-000002.tar"], every_byte=True))
    assert {name for name, fault in found.items() if fault} == {path.name}
    assert re.search(message, found[path.name]) and "train-000001" in found[path.name]
    assert re.search("delete .* again|rerun", found[path.name])


def test_without_verify_only_sizes_are_compared(folder):
    spoil_byte(folder / "train-000001.tar")
    assert fault_of(str(folder / "train-000001.tar"), every_byte=False) is None
    assert fault_of(str(folder / "train-000001.tar"), every_byte=True) is not None


def test_an_index_of_other_episodes_is_a_fault(folder, capsys):
    manifests = list(index.read_manifests(str(folder)))
    assert index_fault(str(folder), manifests) is None
    index.write_index(str(folder), NAME, manifests[:-1], [])
    assert "5 rows, but the manifests list 6 episodes, 5 of which are in" in index_fault(str(folder), manifests)
    assert inspect([str(folder), "--verify"]) == 1
    assert "index.parquet has 5 rows" in capsys.readouterr().err
    (folder / index.INDEX_FILE).write_bytes(b"no parquet")
    assert "can't be read" in index_fault(str(folder), manifests)
    (folder / index.INDEX_FILE).unlink()
    assert "doesn't exist" in index_fault(str(folder), manifests)


def test_shards_on_an_object_store_are_verified_too(tmp_path, capsys):
    make(tmp_path, "memory://verify/" + NAME)
    assert inspect(["memory://verify", "--verify"]) == 0
    path = f"memory://verify/{NAME}/train-000000.tar"
    data = bytearray(storage.read_bytes(path))
    data[2000] ^= 4
    storage.write_bytes(path, bytes(data))
    assert inspect(["memory://verify", "--verify"]) == 1
    assert "train-000000.tar" in capsys.readouterr().err


def test_skipped_episodes_are_counted_by_kind(tmp_path, capsys):
    broken = episode(1, image=lambda t: b"\xff\xd8\xff" if t == 3 else encode_jpeg(np.zeros((48, 64, 3), np.uint8)))
    make(tmp_path, str(tmp_path / "eps" / NAME), [episode(0), broken])
    assert inspect([str(tmp_path / "eps")]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {"damaged": 1}


def test_an_index_without_quality_columns_is_summarised_without_quality(folder):
    table = index.read_index(str(folder))
    old = table.select([name for name in table.column_names if name in index.ENTRY_COLUMNS or name in ("split", "shard")])
    statistics = overview(old, None)
    assert statistics.quality == {} and statistics.copies is None and statistics.episodes == 6
    assert overview(table.slice(0, 0), None).as_dict()["episodes"] == 0


def test_instructions_are_counted_by_script_without_guessing_the_language():
    facts = language_statistics(["open the door", "open the door ", "", "открой дверь", "x" * 500])
    assert facts["share"] == 0.8 and facts["distinct"] == 3
    assert facts["scripts"] == {"Latin": 2, "Cyrillic": 1}
    assert facts["examples"][0] == "open the door" and max(map(len, facts["examples"])) == 160
    assert language_statistics([])["share"] == 0 and language_statistics(["", " "])["words"] is None
    assert language_statistics(["123 ?"])["scripts"] == {"None": 1}


def test_token_shards_are_counted(tmp_path):
    table = pa.table({"ids": list(range(7))})
    with pa.OSFile(str(tmp_path / "train-000000.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    path = tmp_path / "train-000000.arrow"
    for samples, right in ((7, True), (8, False)):
        size, digest = path.stat().st_size, sha256_of(path)
        write_manifest(str(tmp_path), ShardManifest(path.name, "0", {}, samples, 7, size, digest))
        assert (fault_of(str(path), every_byte=True) is None) == right
