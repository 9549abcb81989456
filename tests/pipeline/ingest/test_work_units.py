"""A unit publishes its shard, then its manifest, or a reason; manifests make the index; any fsspec URL works."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
from rlds_data import NAME, episode, write_set

from pipeline import open_shard
from pipeline.common import storage
from pipeline.common.errors import ConflictError, ShardError, SourceError
from pipeline.common.manifests import ShardManifest, SkippedEpisode, describe_difference, find_done
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.frames import FrameForm, encode_jpeg
from pipeline.ingest.job import ingest, refuse_strays
from pipeline.ingest.outcome import Outcome, check_outcomes
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import collect_failures, run_unit
from pipeline.inspection.inspect import run as inspect
from pipeline.sources.locate import open_source
from pipeline.sources.npz.source import NpzSource
from pipeline.sources.rlds.source import RldsSource
from pipeline.sources.video.source import VideoSource

ENTRY = DatasetEntry(NAME, NAME, "image", version="0.1.0", control_hz=10.0, base_step=10.0)
FORM = FrameForm("jpeg", 40)


def make(tmp_path, output: str, form=FORM, **shape):
    folder = write_set(tmp_path, **shape)
    source = RldsSource(str(folder), ENTRY, form)
    units = make_plan(source, None, None, 1)
    for unit in units:
        run_unit(unit, source, output)
    return units


@pytest.mark.parametrize("output", ["memory://units/toy", None])
def test_units_fill_a_folder_or_url_that_the_index_reads(tmp_path, output):
    output = output or str(tmp_path / "out")
    units = make(tmp_path, output, episodes=5, per_shard=2)
    assert collect_failures(output) == {}
    assert all(find_done(output, unit.shard, unit.inputs) for unit in units)
    manifests = index.write_index(output, NAME, index.read_manifests(output), [])
    assert [manifest.shard for manifest in manifests] == [unit.shard for unit in units]
    rows = index.read_index(output).to_pylist()
    assert [row["key"] for row in rows] == [e.key for unit in units for e in open_shard(storage.join(output, unit.shard))]
    assert index.read_index(output, ["split"]).to_pydict() == {"split": ["train"] * 5 + ["val"]}
    one = index.read_episode(output, "train-00001-000001")
    assert one.language == "do thing 3" and np.array_equal(one.action[:, 1], range(6))
    with pytest.raises(ShardError, match="has no episode 'train-9'"):
        index.read_episode(output, "train-9")
    summary = json.loads(storage.read_bytes(storage.join(output, index.SUMMARY_FILE)))
    assert summary["splits"]["train"]["episodes"] == 5 and summary["splits"]["val"]["frames"] == 6


def test_the_index_has_the_same_bytes_every_time_and_is_plain_parquet(tmp_path):
    output = str(tmp_path / "out")
    make(tmp_path, output, episodes=3)
    files = []
    for _ in range(2):
        index.write_index(output, NAME, index.read_manifests(output), [])
        files.append([(tmp_path / "out" / name).read_bytes() for name in (index.INDEX_FILE, index.SUMMARY_FILE)])
    assert files[0] == files[1]
    assert pq.read_table(tmp_path / "out" / index.INDEX_FILE).num_rows == 4


def test_a_bad_episode_is_left_out_and_listed_with_its_place_and_reason(tmp_path):
    broken = episode(1, image=lambda t: b"\xff\xd8\xff" if t == 3 else episode(1)["steps"][t]["observation"]["image"])
    make(tmp_path, str(tmp_path / "out"), episodes=[episode(0), broken, episode(2)], per_shard=3)
    manifest = next(index.read_manifests(str(tmp_path / "out")))
    assert manifest.samples == 2
    (skipped,) = manifest.left_out
    assert (skipped.source_file, skipped.source_record) == (f"{NAME}-train.tfrecord-00000-of-00001", 1)
    assert "JPEG header is damaged" in skipped.reason
    outcome = Outcome(list(index.read_manifests(str(tmp_path / "out"))), 2, {}, 1.0)
    with pytest.raises(SourceError, match=r"toy: 1 of 4 episodes were left out.*\n.*record 1: JPEG header"):
        check_outcomes({"toy": outcome}, 0.2)
    check_outcomes({"toy": outcome}, 0.25)


def test_every_data_set_that_lost_too_much_is_named_and_every_reason_is_listed_once():
    many = [SkippedEpisode("b.tfrecord", n, "a placeholder") for n in range(50)]
    manifest = ShardManifest("train-000000.tar", "", {}, 60, 0, 0, "", [SkippedEpisode("a.tfrecord", 3, "no frames"), *many])
    outcomes = {
        "first": Outcome([manifest], 1, {}, 1.0),
        "intact": Outcome([dataclasses.replace(manifest, left_out=[])], 1, {}, 1.0),
        "third": Outcome([], 0, {"train-000001.tar": "the disk is full"}, 1.0),
    }
    with pytest.raises(SourceError) as raised:
        check_outcomes(outcomes, 0.01)
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("first: 51 of 111 episodes were left out")
    assert lines[1:3] == ["  b.tfrecord, record 0 and 49 more: a placeholder", "  a.tfrecord, record 3: no frames"]
    assert lines[3:] == ["third: 1 shards could not be made:", "  train-000001.tar: the disk is full"]


def test_a_file_that_cannot_be_opened_loses_only_itself(tmp_path):
    folder = write_set(tmp_path, episodes=3, per_shard=1)
    bad = folder / f"{NAME}-train.tfrecord-00001-of-00003"
    bad.unlink()
    bad.symlink_to(bad.name)
    source = RldsSource(str(folder), ENTRY, FORM)
    output = str(tmp_path / "out")
    units = make_plan(source, None, None, 1)
    for unit in units:
        run_unit(unit, source, output)
    assert storage.list_files(output) == [
        "train-000000.json",
        "train-000000.tar",
        "train-000001.json",
        "train-000001.tar",
        "train-000002.json",
        "train-000002.tar",
        "val-000000.json",
        "val-000000.tar",
    ]
    assert collect_failures(output) == {}
    (skipped,) = [item for manifest in index.read_manifests(output) for item in manifest.left_out]
    assert (skipped.source_file, skipped.source_record, skipped.kind) == (bad.name, 0, "missing")
    assert "can't be opened" in skipped.reason


def test_shards_of_another_plan_are_refused_by_name(tmp_path):
    output = str(tmp_path / "out")
    units = make(tmp_path, output, episodes=4, per_shard=1)
    refuse_strays(units, output)
    with pytest.raises(ConflictError, match=r"train-000002\.json is not one of the 2 shards of this plan"):
        refuse_strays([unit for unit in units if unit.split == "train"][:2], output)


def test_shards_made_from_other_inputs_are_remade_only_with_overwrite(tmp_path):
    output = str(tmp_path / "out")
    make(tmp_path, output, episodes=2)
    source = RldsSource(str(tmp_path / NAME / "0.1.0"), ENTRY, FrameForm("png", 40))
    units = make_plan(source, None, None, 1)
    in_process = ["--direct_running_mode=in_memory"]
    with pytest.raises(ConflictError, match=r'frames\.encoding: "jpeg" -> "png"'):
        ingest(units, source, NAME, output, in_process, overwrite=False)
    outcome = ingest(units, source, NAME, output, in_process, overwrite=True)
    assert outcome.shards_made == len(units) and not outcome.failures
    assert ingest(units, source, NAME, output, in_process, overwrite=False).shards_made == 0
    (tmp_path / "out" / "train-000000.tar").unlink()
    assert ingest(units, source, NAME, output, in_process, overwrite=False).shards_made == 1


def test_splits_made_separately_must_be_made_from_the_same_inputs(tmp_path):
    output = str(tmp_path / "out")
    folder = write_set(tmp_path, episodes=2)
    for form, split in ((FORM, "train"), (FORM, "val"), (FrameForm("png", 40), "val")):
        source = RldsSource(str(folder), ENTRY, form)
        units = make_plan(source, [split], None, 1)
        if form == FORM:
            refuse_strays(units, output)
            run_unit(units[0], source, output)
        else:
            with pytest.raises(
                ConflictError, match=r'train-000000\.json was made from other inputs: frames\.encoding: "jpeg" -> "png"'
            ):
                refuse_strays(units, output)


def test_the_source_is_found_below_a_root_or_at_the_version_folder(tmp_path):
    folder = write_set(tmp_path / "rlds", episodes=1)
    for place in (tmp_path / "rlds", tmp_path / "rlds" / NAME, folder):
        source = open_source(ENTRY, str(place), FORM)
        assert isinstance(source, RldsSource) and source.folder == str(folder)
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "a.npz", image=np.zeros((1, 8, 8, 3), np.uint8))
    assert isinstance(open_source(ENTRY, str(tmp_path / "npz"), FORM), NpzSource)
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "A.MP4").write_bytes(b"")
    assert isinstance(open_source(ENTRY, str(tmp_path / "video"), FORM), VideoSource)


def test_a_source_that_is_not_found_is_an_error_that_lists_what_exists(tmp_path):
    write_set(tmp_path, episodes=1)
    with pytest.raises(SourceError, match="doesn't exist"):
        open_source(ENTRY, str(tmp_path / "nowhere"), FORM)
    other = DatasetEntry(NAME, NAME, "image", version="9.9.9")
    with pytest.raises(SourceError, match=rf"{NAME} has 0\.1\.0"):
        open_source(other, str(tmp_path), FORM)
    with pytest.raises(SourceError, match=f"has {NAME}/"):
        open_source(DatasetEntry("b", "b", "image"), str(tmp_path), FORM)
    (tmp_path / NAME / "0.1.0" / "features.json").unlink()
    with pytest.raises(SourceError, match=r"holds no features\.json"):
        open_source(ENTRY, str(tmp_path), FORM)


def test_inspect_counts_and_finds_every_kind_of_damage(tmp_path, capsys):
    output = tmp_path / "out"
    make(tmp_path, str(output), episodes=5, per_shard=1)
    index.write_index(str(output), NAME, index.read_manifests(str(output)), [])
    assert inspect([str(tmp_path / "out"), "--verify"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["faults"] == 0 and report["splits"]["train"]["samples"] == 5
    data = bytearray((output / "train-000000.tar").read_bytes())
    data[3000] ^= 1
    (output / "train-000000.tar").write_bytes(data)
    (output / "train-000001.tar").write_bytes(data[:-1])
    (output / "train-000002.tar").unlink()
    (output / "train-000003.json").unlink()
    assert inspect([str(output)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert inspect([str(output), "--verify"]) == 1
    faults = [line for line in capsys.readouterr().err.splitlines() if "train-" in line]
    words = ["has the SHA-256", "bytes, but its manifest says", "is missing", "has no manifest"]
    assert len(faults) == 4 and all(word in fault for word, fault in zip(words, faults, strict=True))
    with pytest.raises(ShardError, match="holds no shards"):
        inspect([str(tmp_path / NAME / "0.1.0")])


def test_a_unit_holds_one_episode_at_a_time_and_frees_its_record_after_parsing(tmp_path):
    images = [encode_jpeg(np.random.default_rng(seed).integers(0, 256, (256, 320, 3), np.uint8)) for seed in range(2)]
    count = (8 << 20) // len(images[0])
    long = [episode(seed, frames=count, image=lambda t: images[t % 2]) for seed in range(3)]
    source = RldsSource(str(write_set(tmp_path, long, per_shard=3)), ENTRY, FrameForm("source"))
    unit = make_plan(source, ["train"], None, 1 << 30)[0]
    tracemalloc.start()
    run_unit(unit, source, str(tmp_path / "out"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    manifest = find_done(str(tmp_path / "out"), unit.shard, unit.inputs)
    assert manifest is not None and manifest.samples == 3 and manifest.bytes > 3 * 7.5 * 2**20
    assert peak < 1.5 * manifest.bytes / 3


def test_a_difference_names_the_item_of_a_list_that_differs():
    old = {"sources": [{"file": "a"}, {"file": "b", "size": 3}]}
    new = {"sources": [{"file": "a"}, {"file": "b", "size": 4}, {"file": "c"}]}
    assert describe_difference(old, new) == 'sources[1].size: 3 -> 4; sources[2]: null -> {"file":"c"}'
