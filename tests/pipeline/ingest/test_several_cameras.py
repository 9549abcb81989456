"""Several cameras are ingested in one pass with the same bytes as in separate passes; public test episodes never train."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from rlds_data import F, episode, features, picture, write_set

from pipeline import open_shard
from pipeline.__main__ import run
from pipeline.common.errors import ConfigError
from pipeline.common.manifests import read_manifest
from pipeline.config import catalog
from pipeline.episodes.frames import FrameForm, encode_jpeg
from pipeline.episodes.skipped import read_skipped
from pipeline.ingest.job import group_by_files, ingest
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import UnitJob, collect_failures, run_jobs, run_unit
from pipeline.sources.base import BadEpisode, SourceShard
from pipeline.sources.locate import open_source
from pipeline.sources.rlds import source as rlds

NAMES = [f"uiuc_d3field{n}" for n in (1, 2, 3, 4)]
FORM = FrameForm("jpeg", 24)


def write_field(root: Path, episodes: int = 4, per_shard: int = 2) -> Path:
    """Write a data set with four cameras; the frames of the last camera are four times as large."""

    def camera(seed, number):
        side = 4 if number == 4 else 1
        return lambda t: encode_jpeg(picture(1000 * number + 10 * seed + t, 48 * side, 64 * side))

    extra = {f"image_{n}": F.Image(shape=(None, None, 3), encoding_format="jpeg") for n in (1, 2, 3, 4)}
    written = [episode(s, frames=3, **{f"image_{n}": camera(s, n) for n in (1, 2, 3, 4)}) for s in range(episodes)]
    return write_set(root, written, per_shard, spec=features(extra=extra), name="uiuc_d3field")


def unit_jobs(root: Path, output: Path) -> list[UnitJob]:
    jobs = []
    for name in NAMES:
        source = open_source(catalog.dataset(name), str(root), FORM)
        jobs += [UnitJob(unit, source, str(output / name)) for unit in make_plan(source, None, None, 1)]
    return jobs


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_single_pass_over_the_source_gives_the_same_bytes_as_one_pass_per_camera(tmp_path, monkeypatch):
    write_field(tmp_path)
    for job in unit_jobs(tmp_path, tmp_path / "single"):
        run_unit(*job)
    opened = []
    read_examples = rlds.read_examples
    monkeypatch.setattr(rlds, "read_examples", lambda path, shard: opened.append(path) or read_examples(path, shard))
    groups = group_by_files(unit_jobs(tmp_path, tmp_path / "joint"))
    assert [len(group) for group in groups] == [4, 4, 4]
    opened.clear()
    for group in groups:
        run_jobs(group)
    assert len(opened) == len(set(opened)) == 3
    assert files(tmp_path / "joint") == files(tmp_path / "single")
    assert len(files(tmp_path / "joint")) == 2 * 3 * 4


def test_all_cameras_get_the_same_groups_of_files_whatever_their_size(tmp_path):
    write_field(tmp_path, episodes=8, per_shard=1)
    plans = []
    for name in NAMES:
        source = open_source(catalog.dataset(name), str(tmp_path), FORM)
        plans.append([unit.sources for unit in make_plan(source, None, None, 20_000)])
    assert plans.count(plans[0]) == 4 and 1 < len(plans[0]) < 9


def test_a_file_that_cannot_be_opened_is_left_out_of_the_shard_of_every_camera_with_its_reason(tmp_path):
    folder = write_field(tmp_path)
    bad = folder / "uiuc_d3field-train.tfrecord-00001-of-00002"
    bad.unlink()
    bad.symlink_to(bad.name)
    for group in group_by_files(unit_jobs(tmp_path, tmp_path / "out")):
        run_jobs(group)
    for name in NAMES:
        assert collect_failures(str(tmp_path / "out" / name)) == {}
        skipped = read_manifest(str(tmp_path / "out" / name / "train-000001.json")).left_out
        assert {(item.source_file, item.kind) for item in skipped} == {(bad.name, "missing")}
        assert len([f for f in files(tmp_path / "out" / name) if f.endswith(".tar")]) == 3


def test_a_damaged_record_is_listed_with_every_camera_and_the_others_are_kept(tmp_path):
    folder = write_field(tmp_path)
    bad = folder / "uiuc_d3field-train.tfrecord-00001-of-00002"
    bad.write_bytes(bad.read_bytes()[:-9])
    for group in group_by_files(unit_jobs(tmp_path, tmp_path / "out")):
        run_jobs(group)
    for name in NAMES:
        manifest = read_manifest(str(tmp_path / "out" / name / "train-000001.json"))
        assert [(item.source_file, item.source_record, item.kind) for item in manifest.left_out] == [(bad.name, 1, "damaged")]
        assert manifest.samples == 1


def test_the_command_ingests_several_cameras_and_refuses_several_data_sets(tmp_path, capsys):
    write_field(tmp_path)
    options = ["--source", str(tmp_path), "--output", str(tmp_path / "out"), "--", "--direct_running_mode=in_memory"]
    assert run(["--dataset", *NAMES[:2], *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["dataset"], line["episodes"], line["made"]) for line in lines] == [(n, 5, 2) for n in NAMES[:2]]
    assert run(["--dataset", *NAMES[:3], *options]) == 0
    assert [json.loads(line)["made"] for line in capsys.readouterr().out.splitlines()] == [0, 0, 2]
    write_set(tmp_path, 1, name="bridge")
    with pytest.raises(ConfigError, match="must be the catalog's cameras of one data set"):
        run(["--dataset", NAMES[0], "bridge", *options])
    with pytest.raises(ConfigError, match="without --camera"):
        run(["--dataset", *NAMES[:2], "--camera", "image_3", *options])


HELD = catalog.test_episodes("robonet_test_episodes.yaml")


def test_the_public_test_episodes_are_the_published_ones(shared):
    with (shared / "facts" / "robonet_test_episodes.csv").open() as file:
        assert {row["trajectory"]: int(row["index_in_tfds_train_split"]) for row in csv.DictReader(file)} == HELD
    assert catalog.dataset("robo_net").test_episodes == "robonet_test_episodes.yaml"


def robonet_items(folder: Path, **known):
    entry = dataclasses.replace(catalog.dataset("robo_net"), version="0.1.0")
    source = open_source(entry, str(folder), FORM)
    shard = dataclasses.replace(source.plan()[0], **known)
    return [item for _, item in source.read(shard)]


def test_public_test_episodes_are_filtered_by_their_index_in_the_split(tmp_path):
    folder = write_set(tmp_path, 5, 5, name="robo_net")
    index = min(HELD.values())
    items = robonet_items(folder, first=index - 2)
    assert [isinstance(item, BadEpisode) and item.filtered for item in items] == [
        n in HELD.values() for n in range(index - 2, index + 3)
    ]
    assert not any(isinstance(item, BadEpisode) for item in robonet_items(folder, first=index - 2, split="val"))


def test_public_test_episodes_are_filtered_by_name_too_and_an_unknown_index_is_a_bad_episode(tmp_path):
    episodes = [episode(seed) for seed in range(3)]
    episodes[1]["episode_metadata"]["file_path"] = f"/somewhere/{min(HELD)}.hdf5"
    folder = write_set(tmp_path, episodes, 3, name="robo_net")
    assert [isinstance(item, BadEpisode) for item in robonet_items(folder)] == [False, True, False]
    items = robonet_items(folder, first=None)
    assert all("its index is unknown" in item.reason and not item.filtered for item in items)


def test_public_test_episodes_become_the_split_test_and_train_is_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(rlds, "test_episodes", lambda file: {"a": 1, "b": 3, "c": 5, "elsewhere": 1000})
    folder = write_set(tmp_path, 7, 2, name="robo_net")
    source = open_source(dataclasses.replace(catalog.dataset("robo_net"), version="0.1.0"), str(folder), FORM)
    files = [(shard.split, shard.number, shard.records, shard.only) for shard in source.plan() if shard.split == "test"]
    assert files == [("test", 0, 1, (1,)), ("test", 1, 1, (1,)), ("test", 2, 1, (1,))]

    def ingested(output: str, **options) -> dict[str, list[str]]:
        units = make_plan(source, None, options.get("most"), 1 << 30)
        outcome = ingest(units, source, "robo_net", str(tmp_path / output), ["--direct_running_mode=in_memory"], False)
        assert outcome.failures == {}
        episodes = [episode for unit in units for episode in open_shard(str(tmp_path / output / unit.shard))]
        return {
            split: [f"{episode.key} {episode.episode_id}" for episode in episodes if episode.key.startswith(split)]
            for split in ("train", "test")
        }

    whole = ingested("whole")
    assert whole["test"] == [f"test-{n:05d}-000001 episode {2 * n + 1}" for n in range(3)]
    assert whole["train"] == [f"train-{n:05d}-000000 episode {2 * n}" for n in range(4)]
    assert ingested("some", most=2) == {"train": whole["train"][:1], "test": whole["test"][:2]}
    # A lost file also loses its test episodes, each listed by its key.
    lost = folder / source.plan()[1].file
    lost.unlink()
    assert ingested("lost") == {"train": [whole["train"][0], *whole["train"][2:]], "test": [whole["test"][0], whole["test"][2]]}
    rows = read_skipped(str(tmp_path / "lost")).to_pylist()
    assert [(row["key"], row["kind"]) for row in rows if row["split"] == "test"] == [("test-00001-000001", "missing")]


def test_the_index_of_a_files_first_record_is_known_until_a_file_has_an_unknown_length(tmp_path):
    folder = write_set(tmp_path, 6, 2)
    source = open_source(catalog.DatasetEntry("toy_set", "toy_set", "image"), str(folder), FORM)
    firsts = {(shard.split, shard.number): shard.first for shard in source.plan()}
    assert firsts == {("train", 0): 0, ("train", 1): 2, ("train", 2): 4, ("val", 0): 0}
    (folder / "dataset_info.json").unlink()
    cut = folder / source.plan()[1].file
    cut.write_bytes(cut.read_bytes()[:-1])
    assert [shard.first for shard in source.plan() if shard.split == "train"] == [0, 2, None]
    _, (_, bad) = source.read(SourceShard("train", 1, cut.name))
    assert "cut short" in bad.reason
