"""Every catalog entry is ingested by the real unit code, from files in its own format to shards with the right content."""

import json
from pathlib import Path

import numpy as np
import pytest
from catalog_forms import (
    FIELD,
    NOT_RLDS,
    STEPS,
    expected_action,
    form_of,
    instruction,
    rlds_entries,
    shown,
    stored,
    write_entry,
)
from downstream_data import bair_record, write_bair, write_robonet, write_vp2
from rlds_data import picture
from tensorflow_datasets.proto import tf_example_pb2
from video_data import numbers, write_video

from pipeline import open_shard
from pipeline.common.errors import ConfigError
from pipeline.common.manifests import read_manifest
from pipeline.config import catalog
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm, decode, encode_jpeg
from pipeline.episodes.naming import hashed_key
from pipeline.ingest.job import group_by_files
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import UnitJob, collect_failures, run_jobs
from pipeline.sources.locate import open_source
from pipeline.sources.tfrecord.reader import read_records, write_record

SOURCE = FrameForm("source")


def ingest(root: Path, output: Path, *entries: DatasetEntry, form: FrameForm = SOURCE) -> list[list[Episode]]:
    """Return the episodes in the shards of each entry; nothing may fail or be left out."""
    jobs = []
    for entry in entries:
        source = open_source(entry, str(root), form)
        jobs += [UnitJob(unit, source, str(output / entry.name)) for unit in make_plan(source, None, None, 1 << 30)]
    for group in group_by_files(jobs):
        run_jobs(group)
    found = []
    for entry in entries:
        folder = output / entry.name
        assert collect_failures(str(folder)) == {}
        assert not any(read_manifest(str(path)).left_out for path in folder.glob("*.json"))
        found.append([episode for path in sorted(folder.glob("*.tar")) for episode in open_shard(path)])
    return found


def check(entry: DatasetEntry, episode: Episode, seed: int) -> None:
    """Assert that an episode has the content that was written for it."""
    assert (episode.dataset, episode.camera, episode.num_frames) == (entry.name, entry.image_key, STEPS)
    assert (episode.height, episode.width) == (48, 64)
    assert (episode.rate, episode.base_step) == (entry.control_hz, entry.base_step)
    assert episode.language == instruction(entry, seed)
    assert np.array_equal(episode.action, expected_action(entry, seed)) and episode.action.dtype == np.float32
    assert episode.state.shape == (STEPS, 4) and not episode.is_terminal.any()
    for t, frame in enumerate(episode.frames):
        kept = stored(entry, entry.image_key, seed, t)
        if entry.image_key in form_of(entry).swapped:
            assert np.array_equal(decode(frame), decode(kept)[:, :, ::-1])
        elif isinstance(kept, bytes):
            assert frame == kept
        assert np.abs(decode(frame).astype(int) - shown(entry, entry.image_key, seed, t)).mean() < 3


@pytest.mark.parametrize("name", [name for name in rlds_entries() if not name.startswith("uiuc_d3field")])
def test_an_rlds_entry_is_ingested_with_its_content(tmp_path, name):
    entry = catalog.dataset(name)
    write_entry(tmp_path / "oxe", entry)
    (episodes,) = ingest(tmp_path / "oxe", tmp_path / "out", entry)
    wanted = [seed for seed, success in enumerate(form_of(entry).successes or (True,) * 3) if success]
    assert [2 * int(e.key.split("-")[1]) + e.source_record for e in episodes] == wanted
    for seed, episode in zip(wanted, episodes, strict=True):
        check(entry, episode, seed)


def test_numbered_entries_are_ingested_in_one_pass_and_each_has_its_own_camera(tmp_path):
    entries = [catalog.dataset(f"uiuc_d3field{n}") for n in (1, 2, 3, 4)]
    assert [entry.image_key for entry in entries] == list(FIELD)
    write_entry(tmp_path / "oxe", entries[0], FIELD)
    for entry, episodes in zip(entries, ingest(tmp_path / "oxe", tmp_path / "out", *entries), strict=True):
        for seed, episode in enumerate(episodes):
            check(entry, episode, seed)
    # The unnumbered entry is published with a camera that the data set doesn't have.
    with pytest.raises(ConfigError, match=r"has no camera 'image'.*image_1, image_2.*Pass --camera"):
        ingest(tmp_path / "oxe", tmp_path / "other", catalog.dataset("uiuc_d3field"))
    named = catalog.dataset("uiuc_d3field", camera="image_2")
    check(named, ingest(tmp_path / "oxe", tmp_path / "other", named)[0][2], 2)


def test_a_placeholder_camera_is_left_out_and_the_others_are_kept(tmp_path):
    write_entry(tmp_path / "oxe", catalog.dataset("bridge"))
    (folder,) = (tmp_path / "oxe" / "bridge").iterdir()
    for path in folder.glob("*.tfrecord-*"):
        _blacken(path, "steps/observation/image_3")
    source = open_source(catalog.dataset("bridge", camera="image_3"), str(tmp_path / "oxe"), SOURCE)
    reasons = [item.reason for shard in source.plan() for _, item in source.read(shard)]
    assert len(reasons) == 3 and all("is a placeholder" in reason for reason in reasons)
    (episodes,) = ingest(tmp_path / "oxe", tmp_path / "out", catalog.dataset("bridge"))
    assert len(episodes) == 3


def _blacken(path: Path, feature: str) -> None:
    records = list(read_records(str(path)))
    with path.open("wb") as file:
        for record in records:
            example = tf_example_pb2.Example.FromString(record)
            images = example.features.feature[feature].bytes_list.value
            images[:] = [encode_jpeg(np.zeros((48, 64, 3), np.uint8))] * len(images)
            write_record(file, example.SerializeToString())


def test_bair_is_ingested_with_its_content(tmp_path):
    entry = catalog.dataset("bair_robot_pushing")
    write_bair(tmp_path / "oxe", [bair_record(0), bair_record(10)])
    (episodes,) = ingest(tmp_path / "oxe", tmp_path / "out", entry)
    assert [e.key for e in episodes] == ["test-00000-000000", "train-00002-000000", "train-00010-000000", "train-00010-000001"]
    assert np.array_equal(decode(episodes[3].frames[1]), picture(11, 64, 64))
    assert (episodes[3].rate, episodes[3].base_step, episodes[3].action.shape) == (None, 1.0, (3, 4))


def test_robonet_hdf5_is_ingested_with_its_content(tmp_path):
    (tmp_path / "hdf5").mkdir()
    write_robonet(tmp_path / "hdf5" / "a.hdf5", "jpg", "BGR")
    write_robonet(tmp_path / "hdf5" / "b.hdf5", "mp4", "RGB")
    test = min(catalog.robonet_test_files())
    write_robonet(tmp_path / "hdf5" / test)
    (episodes,) = ingest(tmp_path, tmp_path / "out", catalog.dataset("tfds_robonet"))
    assert [(e.key, e.source_file) for e in episodes] == [
        (hashed_key("test", test, 0), test),
        (hashed_key("train", "a.hdf5", 0), "a.hdf5"),
        (hashed_key("train", "b.hdf5", 0), "b.hdf5"),
    ]
    for episode in episodes:
        assert episode.action.shape == (5, 5) and episode.num_frames == 5
        assert np.abs(decode(episode.frames[3]).astype(int) - picture(3)).mean() < 8


@pytest.mark.parametrize(("name", "camera"), [("vp2_robodesk", "camera_image"), ("vp2_robosuite", "agentview_shift_2_image")])
def test_vp2_is_ingested_with_its_content(tmp_path, name, camera):
    write_vp2(tmp_path / "push.hdf5", camera, train=("demo_2", "demo_0"))
    (episodes,) = ingest(tmp_path, tmp_path / "out", catalog.dataset(name))
    assert [(e.key, e.episode_id) for e in episodes] == [
        (hashed_key("train", "push.hdf5", 0), "demo_2"),
        (hashed_key("train", "push.hdf5", 1), "demo_0"),
        (hashed_key("valid", "push.hdf5", 0), "demo_1"),
    ]
    assert np.array_equal(decode(episodes[0].frames[2]), picture(22)) and episodes[0].camera == camera


def test_something_something_is_ingested_with_its_content(tmp_path):
    template = "Closing [something]"
    item = {"id": "12", "label": "closing a box", "template": template, "placeholders": ["a box"]}
    (tmp_path / "labels").mkdir()
    tables = {"labels": {"Closing something": "0"}, "train": [item], "validation": [], "test": []}
    for name, content in tables.items():
        (tmp_path / "labels" / f"{name}.json").write_text(json.dumps(content))
    write_video(tmp_path / "12.mp4", count=6)
    (episodes,) = ingest(tmp_path, tmp_path / "out", catalog.dataset("sthsth"))
    assert [(e.language, e.rate, numbers(e)) for e in episodes] == [("closing a box", 12, list(range(6)))]


def test_these_tests_cover_every_entry_and_mixtures_name_no_others():
    names = set(catalog.datasets())
    assert len(names) == 61 and {*rlds_entries(), *NOT_RLDS} == names
    for weights in catalog._mixtures().values():
        assert weights.keys() <= names
