"""BAIR, RoboNet and VP2 are read in their published layouts, valid and invalid."""

import csv
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from downstream_data import bair_record, write_bair, write_robonet, write_vp2
from rlds_data import picture

from pipeline.common.errors import BadEpisodeError, SourceError
from pipeline.common.manifests import fingerprint
from pipeline.config.catalog import DatasetEntry, dataset, robonet_test_files
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm, decode
from pipeline.ingest.plan import make_plan
from pipeline.sources.bair import BairSource
from pipeline.sources.base import BadEpisode
from pipeline.sources.hdf5 import files as hdf5
from pipeline.sources.hdf5 import vp2
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.hdf5.vp2 import Vp2Source
from pipeline.sources.locate import open_source

PNG = FrameForm("png")
ROBONET = DatasetEntry("tfds_robonet", "tfds_robonet", "image")


def test_bair_frames_are_raw_pixels_of_the_second_camera_by_default(tmp_path):
    write_bair(tmp_path, [bair_record(0), bair_record(10)])
    source = open_source(dataset("bair_robot_pushing"), str(tmp_path), PNG)
    assert isinstance(source, BairSource)
    plan = source.plan()
    assert [(s.split, s.number, s.records) for s in plan] == [("test", 0, 1), ("train", 2, 1), ("train", 10, 2)]
    assert sum(unit.source_bytes for unit in make_plan(source, None, None, 1 << 30)) > 0
    _, episode = list(source.read(plan[2]))[1]
    assert (episode.key, episode.camera, episode.num_frames) == ("train-00010-000001", "aux1_image", 3)
    assert np.array_equal(decode(episode.frames[2]), picture(12, 64, 64))
    assert np.array_equal(episode.action[:, 1], [0, 1, 2]) and episode.action.shape == (3, 4)
    assert np.array_equal(episode.state[:, 0], [0, 1, 2])
    main = open_source(dataset("bair_robot_pushing", camera="main_image"), str(tmp_path / "softmotion30_44k"), PNG)
    ((_, episode),) = main.read(main.plan()[0])
    assert np.array_equal(decode(episode.frames[0]), picture(50, 64, 64))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"1/image_aux1/encoded": b"short"}, "has 5 bytes"),
        ({"1/image_aux1/encoded": None}, "feature 1/image_aux1/encoded is missing"),
        ({"2/action": None}, "feature 2/action is missing"),
        ({"2/action": [1.0]}, r"has \[1, 4\] numbers a step"),
        ({"0/action": [1.0, 2.0, 3.0, float("nan")]}, "not finite"),
        ({f"{t}/image_aux1/encoded": None for t in range(3)}, "the record has image_main"),
    ],
)
def test_an_invalid_bair_record_is_left_out_and_the_next_one_kept(tmp_path, change, reason):
    write_bair(tmp_path, [bair_record(0, change=change), bair_record(10)])
    source = open_source(dataset("bair_robot_pushing"), str(tmp_path), PNG)
    (_, bad), (_, good) = source.read(source.plan()[2])
    assert isinstance(bad, BadEpisode) and good.num_frames == 3
    assert re.search(reason, bad.reason)


def robonet_episode(folder: Path):
    source = open_source(ROBONET, str(folder), PNG)
    assert isinstance(source, RobonetSource)
    ((_, item),) = source.read(source.plan()[0])
    return item


@pytest.mark.parametrize("encoding", ["jpg", "mp4"])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_robonet_frames_have_the_right_colours(tmp_path, encoding, order):
    write_robonet(tmp_path / "a.hdf5", encoding, order)
    episode = robonet_episode(tmp_path)
    assert (episode.num_frames, episode.height, episode.width, episode.episode_id) == (5, 48, 64, "a")
    for t, frame in enumerate(episode.frames):
        assert np.abs(decode(frame).astype(int) - picture(t)).mean() < 8
    assert np.array_equal(episode.action[:4], np.arange(20).reshape(4, 5)) and not episode.action[4].any()


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ({"frames": 4, "states": 6, "actions": 5}, 4),
        ({"frames": 6, "states": 3, "actions": 5}, 3),
        ({"frames": 6, "states": 6, "actions": 1}, 2),
    ],
)
@pytest.mark.parametrize("encoding", ["jpg", "mp4"])
def test_an_episode_is_as_long_as_the_shortest_of_frames_states_and_actions(tmp_path, encoding, lengths, expected):
    write_robonet(tmp_path / "a.hdf5", encoding, **lengths)
    episode = robonet_episode(tmp_path)
    assert (episode.num_frames, len(episode.action), len(episode.state)) == (expected,) * 3


BOUNDS = {"low_bound": np.array([[0.0, 0.0], [9.0, 9.0]]), "high_bound": np.array([[1.0, 1.0], [9.0, 9.0]])}


@pytest.mark.parametrize(
    ("dim", "about", "last_columns"),
    [
        (4, {"primitives": "autograsp", **BOUNDS}, [0, 1, 1, 1]),
        (4, {"primitives": b"autograsp", "low_bound": [0.0, -2.0], "high_bound": [1.0, 3.0]}, [-2, 3, 3, 3]),
        (4, {"primitives": "null", **BOUNDS}, [0, 0, 0, 0]),
        (3, {"primitives": "autograsp", **BOUNDS}, [0, 0, 0, 0]),
        (5, {}, [4, 9, 14, 19]),
        (7, {}, [4, 11, 18, 25]),
    ],
)
def test_robonet_actions_have_five_numbers(tmp_path, dim, about, last_columns):
    write_robonet(tmp_path / "a.hdf5", dim=dim, **about)
    action = robonet_episode(tmp_path).action
    assert action.shape == (5, 5)
    assert np.array_equal(action[:4, 4], last_columns)
    assert np.array_equal(action[:4, : min(dim, 4)], np.arange(4 * dim).reshape(4, dim)[:, :4])


def test_bounds_may_lie_in_env(tmp_path):
    write_robonet(tmp_path / "a.hdf5", dim=4, primitives="autograsp")
    assert "low_bound" in robonet_episode(tmp_path).reason
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        for name, value in BOUNDS.items():
            file[f"env/{name}"] = value
    assert np.array_equal(robonet_episode(tmp_path).action[:4, 4], [0, 1, 1, 1])


@pytest.mark.parametrize("numbers", [np.full(300, 2.5), np.full(300, 1j), np.full(300, 1 << 40), np.full(300, -1, np.int16)])
@pytest.mark.parametrize(("encoding", "place"), [("jpg", "frame1"), ("mp4", "frames")])
def test_robonet_arrays_that_are_not_bytes_are_refused_as_images_and_videos(tmp_path, encoding, place, numbers):
    write_robonet(tmp_path / "a.hdf5", encoding=encoding)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        kept = dict(file[f"env/cam0_video/{place}"].attrs)
        del file[f"env/cam0_video/{place}"]
        file[f"env/cam0_video/{place}"] = numbers
        file[f"env/cam0_video/{place}"].attrs.update(kept)
    item = robonet_episode(tmp_path)
    assert f"{place} has the type {numbers.dtype}, or numbers beyond 0 to 255" in item.reason


def test_bytes_stored_as_wider_integers_are_the_same_image(tmp_path):
    write_robonet(tmp_path / "a.hdf5")
    usual = robonet_episode(tmp_path).frames
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        data = file["env/cam0_video/frame1"][()].astype(np.int64)
        del file["env/cam0_video/frame1"]
        file["env/cam0_video/frame1"] = data
    assert robonet_episode(tmp_path).frames == usual


@pytest.mark.parametrize("place", ["env/state", "policy/actions"])
def test_rows_far_wider_than_any_robot_are_refused_before_they_are_read(tmp_path, place):
    write_robonet(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file[place]
        file.create_dataset(place, (5, 2_000_000), "f8", chunks=(5, 1000), compression="gzip")
    assert f"{place} has the shape (5, 2000000): empty, or larger than any episode" in robonet_episode(tmp_path).reason


def test_public_test_files_are_never_in_train(tmp_path, shared):
    with (shared / "facts" / "robonet_test_files.csv").open() as file:
        assert {row["file"] for row in csv.DictReader(file)} == robonet_test_files()
    for name in [*sorted(robonet_test_files())[:3], "a_traj1.hdf5", "z_traj1.hdf5"]:
        (tmp_path / name).touch()
    write_robonet(tmp_path / "a_traj1.hdf5")
    plan = open_source(ROBONET, str(tmp_path), PNG).plan()
    assert [s.file for s in plan if s.split == "train"] == ["a_traj1.hdf5", "z_traj1.hdf5"]
    assert {s.file for s in plan if s.split == "test"} == set(sorted(robonet_test_files())[:3])
    assert len({s.key(0) for s in plan}) == 5


def test_invalid_robonet_files_are_bad_episodes_with_a_reason(tmp_path):
    def spoilt(change) -> str:
        write_robonet(tmp_path / "a.hdf5", "mp4")
        with h5py.File(tmp_path / "a.hdf5", "a") as file:
            change(file)
        return robonet_episode(tmp_path).reason

    def replace(name, value):
        def change(file):
            del file[name]
            file[name] = value

        return change

    assert "no data set policy/actions" in spoilt(lambda file: file.pop("policy/actions"))
    assert "the file has 0, called" in spoilt(lambda file: file["env"].attrs.modify("n_cams", 0))
    assert "neither RGB nor BGR" in spoilt(lambda file: file["env/cam0_video/frames"].attrs.modify("image_format", "HSV"))
    assert "where 9 are stated" in spoilt(
        lambda file: (
            file["env/cam0_video/frames"].attrs.modify("T", 9),
            replace("env/state", np.zeros((20, 2)))(file),
            replace("policy/actions", np.zeros((20, 5)))(file),
        )
    )
    assert "is a link" in spoilt(replace("env/state", h5py.ExternalLink("/etc/other.hdf5", "/state")))
    assert "not rows of numbers" in spoilt(replace("env/state", np.zeros(5)))
    write_robonet(tmp_path / "b.hdf5")
    (tmp_path / "a.hdf5").write_bytes((tmp_path / "b.hdf5").read_bytes()[:3000])
    assert "no sound HDF5" in robonet_episode(tmp_path).reason


@pytest.mark.parametrize(("name", "camera"), [("vp2_robodesk", "camera_image"), ("vp2_robosuite", "agentview_shift_2_image")])
def test_vp2_files_are_split_by_their_masks(tmp_path, name, camera):
    write_vp2(tmp_path / "push.hdf5", camera)
    source = open_source(dataset(name), str(tmp_path), PNG)
    assert isinstance(source, Vp2Source)
    plan = source.plan()
    assert [(s.split, s.number, s.records) for s in plan] == [("train", None, 3), ("valid", None, 1)]
    (_, first), (_, second), (position, bad) = source.read(plan[0])
    assert (first.episode_id, first.camera, first.key) == ("demo_2", camera, plan[0].key(0))
    assert np.array_equal(decode(second.frames[2]), picture(2)) and np.array_equal(first.action, np.full((3, 5), 2))
    assert position == 2 and "data/demo_9/obs has no camera 'image'; it has nothing" in bad.reason
    (unit,) = make_plan(source, ["train"], 1, 1 << 30)
    assert len(list(source.read(unit.sources[0]))) == 1


def test_the_episodes_of_a_vp2_file_are_divided_between_units_and_are_the_same_for_any_number_of_units(tmp_path, monkeypatch):
    write_vp2(tmp_path / "push.hdf5")

    def read(count: int, shard_bytes: int) -> tuple[list[int], list[Episode]]:
        monkeypatch.setattr(vp2, "_RANGE", count)
        source = open_source(dataset("vp2_robodesk"), str(tmp_path), PNG)
        units = [unit for unit in make_plan(source, None, None, shard_bytes) if unit.split == "train"]
        assert len({fingerprint(unit.inputs) for unit in units}) == len(units)
        found = [item for unit in units for shard in unit.sources for _, item in source.read(shard)]
        return [len(unit.sources) for unit in units], [item for item in found if isinstance(item, Episode)]

    whole, apart, regrouped = read(32, 1 << 30), read(1, 1), read(1, 1 << 30)
    assert (whole[0], apart[0], regrouped[0]) == ([1], [1, 1, 1], [3])
    for one, two, three in zip(whole[1], apart[1], regrouped[1], strict=True):
        assert one.key == two.key == three.key and one.frames == two.frames == three.frames
    source = open_source(dataset("vp2_robodesk"), str(tmp_path), PNG)
    (first, second) = make_plan(source, ["train"], 2, 1)
    assert [len(list(source.read(unit.sources[0]))) for unit in (first, second)] == [1, 1]


def test_the_frames_of_a_vp2_episode_are_read_block_by_block(tmp_path, monkeypatch):
    write_vp2(tmp_path / "push.hdf5")
    source = open_source(dataset("vp2_robodesk"), str(tmp_path), PNG)
    shard = source.plan()[1]
    ((_, usual),) = source.read(shard)
    monkeypatch.setattr(vp2, "_BLOCK", 2)
    assert source.read_here(shard, 0, "demo_1").frames == usual.frames
    monkeypatch.setattr(hdf5, "MAX_ARRAY_BYTES", 48 * 64 * 3)
    with pytest.raises(BadEpisodeError, match="larger than any episode"):
        source.read_here(shard, 0, "demo_1")


def test_a_vp2_file_without_masks_and_hdf5_of_another_kind_are_errors_that_name_the_file(tmp_path):
    write_vp2(tmp_path / "push.hdf5")
    with h5py.File(tmp_path / "push.hdf5", "a") as file:
        del file["mask"]
    with pytest.raises(SourceError, match=r"none of 1 files can be read.*push\.hdf5.*neither mask/train nor mask/valid"):
        open_source(dataset("vp2_robodesk"), str(tmp_path), PNG).plan()
    (tmp_path / "push.hdf5").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"can't be read.*Fetch them again"):
        open_source(dataset("vp2_robodesk"), str(tmp_path), PNG)


def test_data_outside_the_file_is_not_followed(tmp_path):
    write_vp2(tmp_path / "push.hdf5")
    (tmp_path / "secret").write_bytes(bytes(range(120)))
    with h5py.File(tmp_path / "push.hdf5", "a") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0"].create_dataset("actions", (3, 5), "f8", external=[(str(tmp_path / "secret"), 0, 120)])
        file["data/demo_2"].move("actions", "other")
        file["data/demo_2/actions"] = h5py.SoftLink("/data/demo_2/other")
    source = open_source(dataset("vp2_robodesk"), str(tmp_path), PNG)
    (_, linked), (_, external), _ = source.read(source.plan()[0])
    assert "is a link" in linked.reason and "in another file" in external.reason
