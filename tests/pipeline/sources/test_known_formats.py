"""Known formats, and other data next to videos, are refused by name; `--kind` decides, and no kind is guessed."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from downstream_data import write_robonet, write_vp2
from rlds_data import picture
from video_data import write_video

from pipeline.common.errors import SourceError
from pipeline.config.catalog import DatasetEntry, dataset
from pipeline.episodes.frames import FrameForm
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.kinds import SOURCE_KINDS
from pipeline.sources.known_formats import KNOWN_FORMATS, recognise
from pipeline.sources.locate import open_source
from pipeline.sources.npz.source import NpzSource
from pipeline.sources.video.source import VideoSource

ENTRY = DatasetEntry("own", "own", "image", control_hz=10.0)
FORM = FrameForm("jpeg", 24)
LISTINGS = {
    "LeRobot v2": [
        "meta/info.json",
        "meta/episodes.jsonl",
        "data/chunk-000/episode_000000.parquet",
        "videos/chunk-000/observation.images.top/episode_000000.mp4",
    ],
    "LeRobot v3": [
        "meta/info.json",
        "meta/tasks.parquet",
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.top/chunk-000/file-000.mp4",
    ],
    "LeRobot without its tables": ["videos/chunk-000/observation.images.top/episode_000000.mp4"],
    "LeRobot, videos' folder": ["chunk-000/observation.images.top/episode_000000.mp4"],
    "LeRobot by its table": ["data/chunk-000/episode_000000.parquet", "videos/a.mp4"],
    "AgiBot": [
        "task_info/task_327.json",
        "observations/327/648642/videos/head_color.mp4",
        "proprio_stats/327/648642/proprio_stats.h5",
    ],
    "AgiBot, part": ["observations/327/648642/videos/head_color.mp4"],
    "DROID raw": [
        "AUTOLab/success/2023-07-07/Fri_Jul_7/metadata_AUTOLab+1.json",
        "AUTOLab/success/2023-07-07/Fri_Jul_7/trajectory.h5",
        "AUTOLab/success/2023-07-07/Fri_Jul_7/recordings/MP4/1.mp4",
    ],
    "EgoDex": ["part1/fold/0.hdf5", "part1/fold/0.mp4", "part1/fold/1.hdf5"],
    "EgoDex, task": ["0.hdf5", "0.mp4"],
    "Ego4D": ["v2/ego4d.json", "v2/full_scale/a.mp4"],
    "Ego-Exo4D": ["takes.json", "takes/a/frame_aligned_videos/cam01.mp4"],
    "EPIC": ["EPIC_100_train.csv", "P01/videos/P01_01.MP4"],
    "BridgeData raw": ["toykitchen/00/traj0/obs_dict.pkl", "toykitchen/00/traj0/images0/im_0.jpg"],
    "Zarr folder": ["replay.zarr/data/.zarray", "replay.zarr/data/0.0"],
    "Zarr itself": [".zgroup", "data/action/.zarray", "data/action/0.0"],
    "Zarr 3": ["zarr.json", "data/c/0/0"],
    "Zarr in a zip": ["replay.zarr.zip"],
    "MCAP": ["episode_0.mcap", "front.mp4"],
    "rosbag 1": ["run.bag"],
    "rosbag 2": ["run/metadata.yaml", "run/run_0.db3"],
    "array_record": ["features.json", "dataset_info.json", "x-train.array_record-00000-of-00001"],
    "Arrow": ["dataset_info.json", "state.json", "data-00000-of-00001.arrow"],
    "Parquet": ["data/train-00000-of-00001.parquet"],
    "own shards": ["own/train-000000.tar", "own/train-000000.json", "own/index.parquet", "own/dataset.json"],
    "token shards": ["own/train-000000.arrow", "own/train-000000.json"],
}
PLAIN = [
    "a.mp4",
    "deep/er/b.webm",
    "metadata.csv",
    "notes.txt",
    "b/c.jpg",
    "archive.zip",
    "videos.tar.gz",
    "._x.hdf5",
    "data/readme.json",
]


@pytest.mark.parametrize("name", LISTINGS)
@pytest.mark.parametrize("below", ["", "a/set/deep/down/in/folders/"])
def test_a_known_format_is_recognised_by_file_names_at_every_depth(name, below):
    named = [*(below + listed for listed in LISTINGS[name]), *(below + plain for plain in ("notes.txt", "x/y.jpg"))]
    known = recognise(named, leftover=True)
    assert known is not None and known.remedy


def test_every_format_except_leftovers_has_a_listing_here():
    recognised = {recognise(names, leftover=True) for names in LISTINGS.values()}
    assert recognised >= {form for form in KNOWN_FORMATS if not form.leftover}


def test_a_plain_folder_of_videos_is_no_known_format_and_archives_count_only_if_nothing_else_is_found():
    assert recognise(PLAIN) is None
    assert recognise(["a.tar.gz"], leftover=True) is not None


def test_only_a_sample_of_the_names_in_a_folder_is_matched():
    class Counted(str):
        seen = 0

        def lower(self):
            Counted.seen += 1
            return super().lower()

    names = [Counted(f"videos/{n}.mp4") for n in range(5000)]
    assert recognise(names) is None and Counted.seen < 500


def lay(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.lower().endswith((".mp4", ".webm")):
            write_video(folder / name, count=2)
        else:
            (folder / name).write_bytes(b"{}")


@pytest.mark.parametrize("name", LISTINGS)
def test_a_known_format_is_refused_by_name_with_advice(tmp_path, name):
    lay(tmp_path, LISTINGS[name])
    known = recognise(LISTINGS[name], leftover=True)
    with pytest.raises(SourceError) as raised:
        open_source(ENTRY, str(tmp_path), FORM)
    assert known.name in str(raised.value) and known.remedy in str(raised.value)


@pytest.mark.parametrize("name", [name for name, listed in LISTINGS.items() if any(n.lower().endswith("mp4") for n in listed)])
def test_kind_video_takes_only_the_videos_of_a_known_format_and_counts_the_other_files(tmp_path, name):
    lay(tmp_path, LISTINGS[name])
    source = open_source(ENTRY, str(tmp_path), FORM, kind="video")
    videos = {listed for listed in LISTINGS[name] if listed.lower().endswith("mp4")}
    assert isinstance(source, VideoSource) and {shard.file for shard in source.plan()} == videos
    assert source.ignored.total() == len(LISTINGS[name]) - len(videos)


@pytest.mark.parametrize("below", ["", "videos", "videos/chunk-000", "videos/chunk-000/observation.images.ego_view", "data"])
def test_a_real_lerobot_set_is_refused_from_its_top_folder_and_every_folder_inside(shared, below):
    root = shared / "data" / "lerobot" / "v2.0_groot_demo"
    with pytest.raises(SourceError, match=r"a LeRobot data set \(v2\.0\).*--kind video"):
        open_source(ENTRY, str(root / below), FORM)
    with pytest.raises(SourceError, match="LeRobot"):
        open_source(ENTRY, str(shared / "data" / "lerobot"), FORM)


@pytest.mark.parametrize("name", ["v3.0_av1", "v3.0_h264"])
def test_version_3_of_lerobot_is_refused_with_its_version(shared, name):
    with pytest.raises(SourceError, match=r"a LeRobot data set \(v3\.0\)"):
        open_source(ENTRY, str(shared / "data" / "lerobot" / name / "videos" / "observation.images.wrist"), FORM)


def test_a_link_to_a_cameras_folder_does_not_hide_its_data_set(tmp_path):
    lay(tmp_path / "set", LISTINGS["LeRobot v2"])
    (tmp_path / "link").symlink_to(tmp_path / "set" / "videos" / "chunk-000" / "observation.images.top")
    with pytest.raises(SourceError, match="LeRobot"):
        open_source(ENTRY, str(tmp_path / "link"), FORM)


def test_a_known_format_on_an_object_store_is_refused_from_inside_too():
    import fsspec

    fs = fsspec.filesystem("memory")
    for name in LISTINGS["LeRobot v2"]:
        fs.pipe(f"/bucket/set/{name}", b"{}")
    for place in ("", "/videos/chunk-000/observation.images.top"):
        with pytest.raises(SourceError, match="LeRobot"):
            open_source(ENTRY, f"memory://bucket/set{place}", FORM)


def npz(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, image=np.stack([picture(t) for t in range(2)]))


def test_npz_next_to_videos_is_refused_without_a_kind(tmp_path):
    npz(tmp_path / "a.npz")
    write_video(tmp_path / "b.mp4", count=2)
    with pytest.raises(SourceError, match=r"1 \.npz, 1 video files.*--kind npz or --kind video"):
        open_source(ENTRY, str(tmp_path), FORM)
    taken = open_source(ENTRY, str(tmp_path), FORM, kind="npz")
    assert isinstance(taken, NpzSource) and [shard.file for shard in taken.plan()] == ["a.npz"]
    assert taken.ignored == {"files that end in .mp4": 1}
    videos = open_source(ENTRY, str(tmp_path), FORM, kind="video")
    assert isinstance(videos, VideoSource) and [shard.file for shard in videos.plan()] == ["b.mp4"]


@pytest.mark.parametrize(
    "other",
    ["actions/b.npz", "data.npy", "poses/b.h5", "table.mat", "labels.pkl", "clip.json", "annotations/clip.json", "clip.txt"],
)
def test_other_data_next_to_videos_is_named_and_never_ignored_silently(tmp_path, other):
    lay(tmp_path, ["videos/clip.mp4", other])
    with pytest.raises(SourceError, match=rf"1 \{Path(other).suffix}.*--kind video"):
        open_source(ENTRY, str(tmp_path), FORM)
    assert isinstance(open_source(ENTRY, str(tmp_path), FORM, kind="video"), VideoSource)


def test_videos_are_found_at_any_depth_and_notes_pictures_and_archives_are_ignored(tmp_path):
    lay(tmp_path, ["one/two/three/four/five/six/seven/a.MP4", "license.txt", "thumbs/a.jpg", "videos.zip", "info.json"])
    source = open_source(ENTRY, str(tmp_path), FORM)
    assert isinstance(source, VideoSource) and [shard.file for shard in source.plan()] == [
        "one/two/three/four/five/six/seven/a.MP4"
    ]


def test_circular_links_are_followed_once(tmp_path):
    lay(tmp_path, ["a/b/clip.mp4"])
    (tmp_path / "a" / "b" / "again").symlink_to(tmp_path)
    assert [shard.file for shard in open_source(ENTRY, str(tmp_path), FORM).plan()] == ["a/b/clip.mp4"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"action": (3, 14), "observations/qpos": (3, 14)}, "ALOHA"),
        ({"transforms/hip": (3, 4, 4), "camera/intrinsic": (3, 3)}, "EgoDex"),
        ({"observation/robot_state": (3, 7), "action/joint": (3, 7)}, "DROID"),
        ({"something": (3, 7), "else": (1,)}, "unknown kind.*else, something"),
    ],
)
def test_hdf5_of_another_kind_is_named_without_advice_to_fetch_it_again(tmp_path, groups, message):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, shape in groups.items():
            file[name] = np.zeros(shape)
    with pytest.raises(SourceError, match=message) as raised:
        open_source(ENTRY, str(tmp_path), FORM)
    assert "Fetch" not in str(raised.value) and "Convert" in str(raised.value)


def test_if_every_hdf5_file_is_damaged_the_advice_is_to_fetch_them_again(tmp_path):
    (tmp_path / "a.hdf5").write_bytes(b"\x89HDF nothing more")
    with pytest.raises(SourceError, match="Fetch them again"):
        open_source(ENTRY, str(tmp_path), FORM)


def test_robomimic_without_a_split_is_an_error_that_says_so(tmp_path):
    write_vp2(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["mask"]
    with pytest.raises(SourceError, match="neither mask/train nor mask/valid") as raised:
        open_source(dataset("vp2_robodesk"), str(tmp_path), FORM).plan()
    assert "etch" not in str(raised.value)


def test_kind_decides_between_hdf5_kinds_without_opening_files(tmp_path):
    write_robonet(tmp_path / "a.hdf5")
    assert isinstance(open_source(ENTRY, str(tmp_path), FORM, kind="robonet"), RobonetSource)
    with pytest.raises(SourceError, match=r"--kind npz needs `\*\.npz`.*; no data of own"):
        open_source(ENTRY, str(tmp_path), FORM, kind="npz")


def test_a_data_set_with_a_version_is_not_taken_for_another_format_below_the_root(tmp_path):
    lay(tmp_path / "other", LISTINGS["LeRobot v2"])
    with pytest.raises(SourceError, match="no data of bridge"):
        open_source(dataset("bridge"), str(tmp_path), FORM)


def test_a_damaged_version_of_a_lerobot_set_is_left_out_of_the_message(tmp_path):
    lay(tmp_path, LISTINGS["LeRobot v2"])
    (tmp_path / "meta" / "info.json").write_text(json.dumps([1]))
    with pytest.raises(SourceError, match="in a LeRobot data set, which"):
        open_source(ENTRY, str(tmp_path), FORM)


def test_a_file_instead_of_a_folder_is_an_error_that_says_so(tmp_path):
    write_video(tmp_path / "a.mp4", count=2)
    with pytest.raises(SourceError, match=r"a\.mp4 is a file\. Pass the folder"):
        open_source(ENTRY, str(tmp_path / "a.mp4"), FORM)


def test_the_documentation_lists_the_kinds_in_the_order_in_which_they_are_tried():
    text = (Path(__file__).parents[3] / "docs" / "ingest.md").read_text()
    table = text.split("### How a source is recognised")[1].split("###")[0]
    places = [table.index(f"`{kind.name}`") for kind in SOURCE_KINDS]
    assert places == sorted(places)
