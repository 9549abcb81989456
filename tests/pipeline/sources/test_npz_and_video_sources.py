"""Episodes are read from valid and invalid npz files and videos."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from rlds_data import picture
from video_data import numbers, write_video

from pipeline.common.errors import SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm, decode
from pipeline.episodes.naming import hashed_key
from pipeline.sources.base import BadEpisode
from pipeline.sources.npz.source import NpzSource, read_npz
from pipeline.sources.video.source import VideoSource, read_video

ENTRY = DatasetEntry("clips", "clips", "image", control_hz=None)


def frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.stack([picture(t, height, width) for t in range(count)])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_an_npz_episode_is_read_with_its_actions(tmp_path, dtype):
    path = tmp_path / "a.npz"
    action = np.arange(15, dtype=np.float64).reshape(5, 3)
    np.savez_compressed(path, image=frames(5).astype(dtype), action=action)
    episode = read_npz(path)
    assert (episode.num_frames, episode.height, episode.width, episode.camera) == (5, 48, 64, "image")
    assert np.array_equal(episode.action, action) and episode.action.dtype == np.float32
    assert np.abs(decode(episode.frames[4]).astype(int) - picture(4)).mean() < 1.5


def test_the_name_of_an_npz_file_gives_its_split_its_order_and_its_key(tmp_path):
    for name in ("train_eps_00000001", "train_eps_00000000", "val_eps_00000100"):
        np.savez(tmp_path / f"{name}.npz", image=frames(2))
    source = NpzSource(str(tmp_path), ENTRY, FrameForm("png"))
    plan = source.plan()
    assert [(s.split, s.number, s.records) for s in plan] == [("train", None, 1), ("train", None, 1), ("val", None, 1)]
    ((position, episode),) = source.read(plan[2])
    assert (position, episode.key) == (0, hashed_key("val", "val_eps_00000100.npz", 0))
    assert np.array_equal(decode(episode.frames[1]), picture(1))


def test_npz_frames_are_read_one_by_one_and_are_the_same_in_every_memory_order(tmp_path):
    rows = np.stack([picture(seed) for seed in range(3)]).repeat(100, axis=0)
    np.savez(tmp_path / "rows.npz", image=rows)
    np.savez(tmp_path / "columns.npz", image=np.asfortranarray(rows[::30]))
    source = NpzSource(str(tmp_path), ENTRY, FrameForm("jpeg", 16))
    columns_first, rows_first = source.plan()
    tracemalloc.start()
    try:
        ((_, episode),) = source.read(rows_first)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert episode.num_frames == 300 and peak < rows.nbytes / 2
    ((_, other),) = source.read(columns_first)
    assert other.frames == episode.frames[::30]


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("image.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (9999, 9999, 9999, 3)})
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, image=np.array([{}], dtype=object))
    return buffer.getvalue()


def other_shape() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, image=np.zeros((4, 4)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no zip at all", "no sound npz"),
        (bomb(), "larger than any episode"),
        (pickled(), "no array"),
        (other_shape(), r"no array 'image' of frames \(T, H, W, 3\)"),
    ],
    ids=["garbage", "bomb", "pickle", "shape"],
)
def test_an_invalid_npz_is_a_bad_episode_and_an_error_that_names_it(tmp_path, content, reason):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    source = NpzSource(str(tmp_path), ENTRY, FrameForm())
    ((_, bad),) = source.read(source.plan()[0])
    assert isinstance(bad, BadEpisode)
    with pytest.raises(SourceError, match=rf"a\.npz.*{reason}"):
        read_npz(path, camera="image")


def test_pixel_values_outside_0_to_255_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", image=frames(2).astype(np.int64) - 1000)
    with pytest.raises(SourceError, match="outside 0 to 255"):
        read_npz(tmp_path / "a.npz")


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    for read in (read_npz, read_video):
        with pytest.raises(SourceError, match="nowhere"):
            read(tmp_path / "nowhere")


def test_all_frames_of_a_video_are_read_in_order(tmp_path):
    write_video(tmp_path / "a.mp4")
    episode = read_video(tmp_path / "a.mp4")
    assert numbers(episode) == list(range(24))
    assert (episode.rate, episode.height, episode.width) == (12, 48, 64)
    assert numbers(read_video(tmp_path / "a.mp4", max_frames=7)) == list(range(7))


@pytest.mark.parametrize(("rate", "expected"), [(4, list(range(0, 24, 3))), (6, list(range(0, 24, 2))), (12, None), (50, None)])
def test_a_video_is_sampled_by_time_without_repeated_frames(tmp_path, rate, expected):
    write_video(tmp_path / "a.mp4")
    episode = read_video(tmp_path / "a.mp4", rate=rate)
    assert numbers(episode) == (expected or list(range(24)))
    assert episode.rate == min(rate, 12)


def test_a_long_video_becomes_several_episodes(tmp_path):
    write_video(tmp_path / "b.mp4", count=25)
    source = VideoSource(str(tmp_path), ENTRY, FrameForm("jpeg", 24), episode_frames=10)
    items = list(source.read(source.plan()[0]))
    assert [position for position, _ in items] == [0, 1, 2]
    assert [e.key for _, e in items] == [hashed_key("train", items[0][1].source_file, n) for n in range(3)]
    assert [number for _, e in items for number in numbers(e)] == list(range(25))
    assert items[0][1].height == 24


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"\0" * 999])
def test_a_file_that_is_not_a_video_is_a_bad_episode(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    source = VideoSource(str(tmp_path), ENTRY, FrameForm())
    ((_, bad),) = source.read(source.plan()[0])
    assert isinstance(bad, BadEpisode)
    with pytest.raises(SourceError, match=r"a\.mp4"):
        read_video(tmp_path / "a.mp4")


def test_half_a_video_is_detected(shared, tmp_path):
    whole = shared / "data" / "video" / "ssv2" / "20bn-something-something-v2" / "900001.webm"
    assert read_video(whole).num_frames == 48 and read_video(whole).rate == 12
    data = whole.read_bytes()
    (tmp_path / "half.webm").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="cut short"):
        read_video(tmp_path / "half.webm")


def test_real_codecs_decode_upright_at_their_size(shared):
    codecs = shared / "data" / "video" / "codecs"
    sizes = {path.name: (e.height, e.width) for path in sorted(codecs.iterdir()) for e in [read_video(path, max_frames=2)]}
    assert len(sizes) == len(list(codecs.iterdir()))
    assert sizes["nasa_13013_rotated.mp4"] == (480, 270)
    assert sizes["testsrc2_odd_height_and_width_vp9_10bit.mp4"] == (241, 321)
