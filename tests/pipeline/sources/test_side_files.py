"""Side files of operating systems and download tools are ignored and counted in every kind of source."""

from pathlib import Path

import numpy as np
import pytest
from downstream_data import bair_record, write_bair, write_robonet, write_vp2
from hypothesis import given
from hypothesis import strategies as st
from rlds_data import NAME, picture, write_set
from video_data import write_video

from pipeline.common import storage
from pipeline.common.errors import SourceError
from pipeline.config.catalog import DatasetEntry, dataset
from pipeline.episodes.frames import FrameForm
from pipeline.sources.locate import open_source
from pipeline.sources.side_files import SIDE_FILES, count_by_ending, is_side_file

FORM = FrameForm("jpeg", 24)
SIDE = [
    "._a.mp4",
    "._a.npz",
    "._a.hdf5",
    "__MACOSX/._a.mp4",
    "__MACOSX/a.mp4",
    ".DS_Store",
    "below/.DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "a.mp4.part",
    "a.npz.crdownload",
    "a.hdf5.aria2",
    "a.mp4.tmp",
    "a.tfrecord_.gstmp",
    "a.mp4_.gstmp",
    "a.mp4.lock",
    ".cache/huggingface/download/a.mp4.metadata",
    ".git/objects/pack/a.mp4",
    "@eaDir/a.mp4/SYNOVIDEO.mp4",
    "lost+found/a.mp4",
    "a.mp4~",
    ".ipynb_checkpoints/a-checkpoint.mp4",
]
DATA = [
    "a.mp4",
    "party.mp4",
    "a.b.npz",
    "deep/below/a.hdf5",
    "lock.mp4",
    "tmp/a.mp4",
    "part/a.mp4",
    "x-train.tfrecord-00000-of-00001",
]


@pytest.mark.parametrize("name", SIDE)
def test_files_of_tools_are_side_files_at_every_depth(name):
    assert is_side_file(name) and is_side_file(f"videos/{name}")


@pytest.mark.parametrize("name", DATA)
def test_data_files_are_not_side_files(name):
    assert not is_side_file(name)


@given(st.lists(st.sampled_from([*SIDE, *DATA, "notes.txt", "README"]), unique=True))
def test_every_ignored_file_is_counted_once(names):
    assert count_by_ending(names).total() == len(names)
    assert count_by_ending(names)[SIDE_FILES] == sum(map(is_side_file, names))


def test_the_number_of_reasons_is_limited():
    assert len(count_by_ending([f"a.x{n}" for n in range(500)])) == 21


def write_npz(path) -> None:
    np.savez(path, image=np.stack([picture(t) for t in range(2)]))


def npz_set(folder):
    write_npz(folder / "a.npz")
    return DatasetEntry("own", "own", "image"), folder


def video_set(folder):
    write_video(folder / "a.mp4", count=3)
    return DatasetEntry("own", "own", "image"), folder


def rlds_set(folder):
    return DatasetEntry(NAME, NAME, "image", version="0.1.0", control_hz=10.0), write_set(folder, episodes=1)


def robonet_set(folder):
    write_robonet(folder / "robot_1.hdf5")
    return dataset("tfds_robonet"), folder


def vp2_set(folder):
    write_vp2(folder / "push.hdf5")
    return dataset("vp2_robodesk"), folder


def bair_set(folder):
    write_bair(folder, [bair_record(1), bair_record(2)])
    return dataset("bair_robot_pushing"), folder / "softmotion30_44k"


@pytest.mark.parametrize("made", [npz_set, video_set, rlds_set, robonet_set, vp2_set, bair_set])
def test_side_files_change_only_the_count_of_ignored_files_in_every_kind_of_source(tmp_path, made):
    entry, folder = made(tmp_path)
    clean = open_source(entry, str(folder), FORM)
    before = (type(clean), clean.folder, clean.plan(), clean.file_sizes())
    files = [Path(name) for name in storage.file_sizes(str(folder), nested=True)]
    side = [*SIDE, *(str(name.parent / f"._{name.name}") for name in files)]
    side += [str(files[0].parent / f"._{n}{files[0].name}") for n in range(9)]
    for name in side:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7 not data")
    source = open_source(entry, str(folder), FORM)
    assert (type(source), source.folder, source.plan(), source.file_sizes()) == before
    assert source.ignored[SIDE_FILES] == len(set(side))
    source.plan()
    assert source.ignored[SIDE_FILES] == len(set(side))


def test_files_with_other_endings_are_counted_by_ending_and_caption_files_are_not(tmp_path):
    write_video(tmp_path / "a.mp4", count=3)
    for name in ("b.jpg", "c.JPG", "d.gif", "notes", "below/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "metadata.csv").write_text("file,text\na.mp4,a hand\n")
    source = open_source(DatasetEntry("own", "own", "image"), str(tmp_path), FORM)
    assert [shard.text for shard in source.plan()] == ["a hand"]
    assert dict(source.ignored) == {
        "files that end in .jpg": 2,
        "files that end in .gif": 1,
        "files that end in .txt": 1,
        "files without an ending": 1,
    }


def test_a_folder_with_only_side_files_is_an_error_that_lists_them(tmp_path):
    (tmp_path / "._a.mp4").write_bytes(b"x")
    (tmp_path / "b.zip").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"no data of own.*1 side files.*1 files that end in \.zip.*Unpack them"):
        open_source(DatasetEntry("own", "own", "image"), str(tmp_path), FORM)
