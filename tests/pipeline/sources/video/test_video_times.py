"""All containers give the same pictures at the same times; another recording in a file is another episode."""

import gc
import io
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from video_data import numbers, remux, write_moving, write_video

from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm, decode
from pipeline.sources.base import BadEpisode, SourceShard
from pipeline.sources.video import source as video
from pipeline.sources.video.decoding import Gap
from pipeline.sources.video.source import UNTIMED, VideoSource, pictures, read_video

FORM = FrameForm("png")
CONTAINERS = ["avi", "mkv", "ts", "mpg", "vob", "flv", "mov", "h264"]


def entry(rate: float | None = None) -> DatasetEntry:
    return DatasetEntry("clips", "clips", "video", control_hz=rate)


def read_all(folder, rate: float | None = None, length: int = 1000) -> list:
    source = VideoSource(str(folder), entry(rate), FORM, episode_frames=length)
    return [item for shard in source.plan() for _, item in source.read(shard)]


def moments(path, rate: float | None) -> tuple[list[float], list[np.ndarray]]:
    with open(path, "rb") as file:
        items = list(pictures(file, rate))
    assert not any(isinstance(item, Gap) or item.time is None for item in items)
    return [item.time - items[0].time for item in items], [item.pixels for item in items]


@pytest.fixture(scope="module")
def h264(tmp_path_factory):
    """Write an H.264 file of 3 s with pyramids of B-frames, and its packets in other containers."""
    folder = tmp_path_factory.mktemp("h264")
    write_moving(folder / "a.mp4", 75, bf="3", **{"b-pyramid": "normal", "x264-params": "b-adapt=0"})
    for ending in CONTAINERS:
        remux(folder / "a.mp4", folder / f"a.{ending}")
    return folder


@pytest.mark.parametrize("rate", [None, 20, 10])
@pytest.mark.parametrize("ending", CONTAINERS)
def test_packets_in_another_container_give_the_same_pictures_at_the_same_times(h264, ending, rate):
    times, pixels = moments(h264 / "a.mp4", rate)
    assert len(times) == {None: 75, 20: 60, 10: 30}[rate]
    other_times, other_pixels = moments(h264 / f"a.{ending}", rate)
    assert len(other_times) == len(times)
    # Some count time in milliseconds.
    assert np.abs(np.array(other_times) - times).max() < 0.002
    assert all(np.array_equal(one, other) for one, other in zip(pixels, other_pixels, strict=True))


def test_each_of_two_joined_recordings_is_an_episode(tmp_path):
    for name, count in (("a", 20), ("b", 15)):
        write_video(tmp_path / f"{name}.ts", count=count, codec="mpeg2video", rate=25)
    joined = (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "c.ts").write_bytes(joined)
    items = read_all(tmp_path / "only")
    assert [type(item) for item in items] == [Episode, Episode]
    assert [numbers(item) for item in items] == [list(range(20)), list(range(15))]
    assert [item.rate for item in items] == [25, 25]
    sampled = read_all(tmp_path / "only", rate=5)
    assert [numbers(item) for item in sampled] == [[0, 5, 10, 15], [0, 5, 10]]


def write_at(path, times: list[int], unit: int = 1000, rate: Fraction | int = 25) -> None:
    """Write a video whose frames have these times, in fractions of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 48, 64, "yuv420p", 4_000_000
        stream.codec_context.time_base = stream.time_base = Fraction(1, unit)
        for t, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * (t % 24), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_long_gap_begins_an_episode_and_uneven_times_do_not(tmp_path):
    write_at(tmp_path / "a.mkv", [0, 40, 80, 60_000, 60_040])
    assert [item.num_frames for item in read_all(tmp_path)] == [3, 2]
    write_at(tmp_path / "a.mkv", [0, 40, 400, 1400, 1440, 6000])
    assert [item.num_frames for item in read_all(tmp_path)] == [6]


def test_all_frames_at_240_per_second_and_at_ntsc_rates_are_read(tmp_path):
    write_at(tmp_path / "a.mp4", [n * 1001 for n in range(24)], unit=240_000, rate=Fraction(240_000, 1001))
    (episode,) = read_all(tmp_path)
    assert numbers(episode) == list(range(24)) and episode.rate == pytest.approx(240 / 1.001)


def write_stuck(folder, first: int, count: int, times: list[int]) -> list:
    """Read a video in which some frames have the time of the frame before them."""
    write_video(folder / "a.avi", count=24, codec="mjpeg", rate=25)
    (folder / "set").mkdir()
    with av.open(str(folder / "a.avi")) as old, av.open(str(folder / "set" / "a.mkv"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(packet for packet in old.demux() if packet.size):
            # Matroska keeps pts alone.
            packet.time_base, packet.stream, packet.dts = Fraction(1, 1000), stream, number
            packet.pts = times[first - 1 if first <= number < first + count else number] + 100
            new.mux(packet)
    return read_all(folder / "set")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_frames_with_wrong_times_keep_the_pace_of_the_others(tmp_path, count):
    (item,) = write_stuck(tmp_path, 5, count, [40 * n for n in range(24)])
    assert numbers(item) == list(range(24)) and item.rate == 25 and item.ignored == {}


def test_frames_without_a_time_are_counted(tmp_path):
    # No later frame fits the previous pace, so their times are unknown.
    (item,) = write_stuck(tmp_path, 5, 2, [40 * n if n < 7 else 40 * n + 330 + 5 * n * n for n in range(24)])
    assert numbers(item) == [n for n in range(24) if n not in (5, 6)]
    assert item.ignored == {UNTIMED: 2}


def test_many_frames_without_a_time_make_a_bad_episode(tmp_path):
    (item,) = write_stuck(tmp_path, 5, 8, [40 * n for n in range(24)])
    assert isinstance(item, BadEpisode) and item.reason == "8 of its frames have no usable time, 16 have one"


def with_sound(path, codec: str, sound: str, seconds: float = 10.0) -> None:
    """Write 50 frames at 25 per second with a longer sound."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        audio = container.add_stream(sound, rate=48_000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for t in range(50):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * t, np.uint8), format="rgb24")))
        container.mux(stream.encode())
        samples = np.zeros((1, int(48_000 * seconds)), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        frame.rate = 48_000
        container.mux(audio.encode(frame))
        container.mux(audio.encode())


@pytest.mark.parametrize(
    ("name", "codec", "sound"), [("a.webm", "libvpx", "libopus"), ("a.mkv", "mpeg4", "aac"), ("a.mp4", "mpeg4", "aac")]
)
@pytest.mark.parametrize("tagged", [True, False])
def test_sound_that_is_longer_than_the_video_is_not_a_loss(tmp_path, name, codec, sound, tagged):
    with_sound(tmp_path / name, codec, sound)
    if not tagged:
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data.replace(b"DURATION", b"DURATIOM"))
    (episode,) = read_all(tmp_path)
    assert episode.num_frames == 50


def test_a_video_shorter_than_its_tag_states_is_truncated(tmp_path):
    with_sound(tmp_path / "a.mkv", "mpeg4", "aac", 1)
    data = (tmp_path / "a.mkv").read_bytes()
    assert b"00:00:02.00" in data
    (tmp_path / "a.mkv").write_bytes(data.replace(b"00:00:02.00", b"00:00:09.00"))
    (bad,) = read_all(tmp_path)
    assert bad.reason == "the file is cut short: its last 7.0 seconds are missing"


def test_of_two_video_streams_the_one_that_ffmpeg_chooses_is_read(tmp_path):
    sizes = [(16, 16), (48, 64)]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in sizes]
        for stream, (height, width) in zip(streams, sizes, strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.bit_rate = 1000 * height * width
            stream.disposition = Disposition.default if width == 64 else Disposition(0)
        for t in range(50):
            for stream, size in zip(streams, sizes, strict=True):
                noise = np.random.default_rng(t).integers(0, 255, (*size, 3)).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.best("video").index == 1
    (episode,) = read_all(tmp_path)
    assert (episode.height, episode.width, episode.num_frames) == (48, 64, 50)


ASYMMETRIC = np.zeros((48, 64, 3), np.uint8)
ASYMMETRIC[:24, :32], ASYMMETRIC[:24, 32:], ASYMMETRIC[24:, :32] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
# What a matrix (a b; c d) does to a picture, y pointing down.
ORIENTATIONS = {
    (1, 0, 0, 1): lambda x: x,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda x: np.rot90(x, 2),
    (0, 1, -1, 0): lambda x: np.rot90(x, -1),
    (0, -1, 1, 0): lambda x: np.rot90(x, 1),
    (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
    (0, -1, -1, 0): lambda x: np.rot90(x, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_a_picture_is_rotated_and_mirrored_by_its_display_matrix(tmp_path, matrix):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 48, 64, "yuv420p", 4_000_000
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(ASYMMETRIC, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    # In `tkhd` (ISO/IEC 14496-12, 8.3.2) the matrix begins 40 bytes behind the version.
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (n << 16 for n in matrix)
    data[place : place + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in (a, b, 0, c, d, 0, 0, 0, 1 << 30))
    (tmp_path / "a.mp4").write_bytes(data)
    (episode,) = read_all(tmp_path)
    wanted = ORIENTATIONS[matrix](ASYMMETRIC)
    assert (episode.height, episode.width) == wanted.shape[:2]
    assert np.abs(decode(episode.frames[1]).astype(int) - wanted).mean() < 12


def test_a_single_read_episode_is_whole_or_an_error(tmp_path):
    write_video(tmp_path / "a.mkv", count=24, codec="mjpeg", rate=25)
    assert read_video(tmp_path / "a.mkv").num_frames == 24
    shard = SourceShard("file", 0, "a.mkv")
    items = list(video._episodes(io.BytesIO((tmp_path / "a.mkv").read_bytes()), entry(), FORM, shard, 10))
    assert [item.num_frames for item in items] == [10, 10, 4]


def test_frames_are_freed_as_soon_as_they_are_read(tmp_path):
    write_moving(tmp_path / "a.mp4", 60)
    gc.collect()
    gc.disable()
    try:
        with (tmp_path / "a.mp4").open("rb") as file:
            held = (
                sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())
                for n, _ in enumerate(pictures(file))
                if n % 9 == 8
            )
            most = max(held)
    finally:
        gc.enable()
    assert most < 16
