"""Damage in a video loses the frames up to the next keyframe; losses are listed and count as the episodes they held."""

import itertools

import av
import numpy as np
import pytest
from video_data import numbers, remux, spoil, write_moving, write_video

from pipeline.common.errors import BadEpisodeError, SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm, decode
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import run_unit
from pipeline.sources.base import BadEpisode
from pipeline.sources.video.source import VideoSource, decoded, read_video

FRAMES, GOP, LENGTH = 600, 50, 150
FORM = FrameForm("png")
ENTRY = DatasetEntry("clips", "clips", "video", control_hz=None)
ENDINGS = ["mp4", "mkv", "ts"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Write a video of 24 s with a keyframe every 2 s, in several containers."""
    folder = tmp_path_factory.mktemp("videos")
    write_moving(folder / "a.mp4", FRAMES, gop=GOP, preset="veryfast", **{"x264-params": "scenecut=0"})
    for ending in ENDINGS[1:]:
        remux(folder / "a.mp4", folder / f"a.{ending}")
    return folder


@pytest.fixture(scope="module")
def pixels(videos) -> list[np.ndarray]:
    with (videos / "a.mp4").open("rb") as file:
        return [pixels for _, pixels in decoded(file)]


def read_all(folder, rate: float | None = None, length: int = LENGTH) -> list:
    source = VideoSource(str(folder), DatasetEntry("clips", "clips", "video", control_hz=rate), FORM, episode_frames=length)
    items = [item for shard in source.plan() for item in source.read(shard)]
    assert [position for position, _ in items] == list(range(len(items)))
    assert all(item.source_record == position for position, item in items if isinstance(item, Episode))
    return [item for _, item in items]


def parts(items: list) -> tuple[int, list[BadEpisode]]:
    """Return the number of frames, and the losses."""
    return sum(item.num_frames for item in items if isinstance(item, Episode)), [i for i in items if isinstance(i, BadEpisode)]


@pytest.mark.parametrize("places", [(0.14,), (0.1, 0.5, 0.8)])
@pytest.mark.parametrize("ending", ENDINGS)
def test_frames_after_damage_are_kept_and_the_loss_counts_as_the_episodes_it_held(tmp_path, videos, ending, places):
    (tmp_path / f"a.{ending}").write_bytes(spoil((videos / f"a.{ending}").read_bytes(), *places))
    kept, lost = parts(read_all(tmp_path))
    assert 1 <= len(lost) <= len(places) and {bad.kind for bad in lost} == {"damaged"}
    assert FRAMES - 2 * GOP * len(places) <= kept < FRAMES
    assert all("is lost" in bad.reason for bad in lost)
    # A frame more or less, where the place is at the end of what was decoded.
    assert LENGTH * sum(bad.episodes for bad in lost) == pytest.approx(FRAMES - kept, abs=2 * len(lost))


@pytest.mark.parametrize("number", [66, 210, 402])
def test_no_frame_that_depends_on_a_damaged_one_is_used(tmp_path, videos, pixels, number):
    data = bytearray((videos / "a.mp4").read_bytes())
    with av.open(str(videos / "a.mp4")) as container:
        start = next(itertools.islice(container.demux(), number, None)).pos
    # Begins where a packet says how long it is.
    data[start : start + 3000] = np.random.default_rng(0).bytes(3000)
    (tmp_path / "a.mp4").write_bytes(data)
    items = read_all(tmp_path, length=FRAMES)
    frames = [decode(frame) for item in items if isinstance(item, Episode) for frame in item.frames]
    before = items[0].num_frames
    wanted = pixels[:before] + pixels[before - len(frames) :]
    assert number - 5 <= before <= number and len(frames) >= FRAMES - GOP
    assert all(np.array_equal(one, other) for one, other in zip(frames, wanted, strict=True))


def test_a_missing_chunk_in_the_index_of_an_avi_is_a_reported_loss(tmp_path):
    write_video(tmp_path / "a.avi", count=24, codec="mjpeg", rate=25)
    data = bytearray((tmp_path / "a.avi").read_bytes())
    with av.open(str(tmp_path / "a.avi")) as container:
        start = next(itertools.islice(container.demux(), 12, None)).pos
    data[start - 8 : start] = bytes(8)
    (tmp_path / "a.avi").write_bytes(data)
    before, bad, after = read_all(tmp_path)
    assert numbers(before) + numbers(after) == [n for n in range(24) if n != 12]
    assert bad.reason.endswith("of the container can't be read, and what is between 0.48 and 0.52 s is lost")


def test_a_damaged_beginning_loses_only_itself(tmp_path, videos):
    data = (videos / "a.ts").read_bytes()
    (tmp_path / "a.ts").write_bytes(spoil(data, 0.006))
    first, *rest = read_all(tmp_path)
    kept, lost = parts([first, *rest])
    assert len(lost) == 1 and kept >= FRAMES - GOP


def test_lost_parts_of_a_sampled_video_count_by_the_sampled_frames(tmp_path, videos):
    (tmp_path / "a.mp4").write_bytes(spoil((videos / "a.mp4").read_bytes(), 0.14))
    kept, (bad,) = parts(read_all(tmp_path, rate=5))
    assert kept + LENGTH * bad.episodes == pytest.approx(FRAMES / 5, abs=4)


def test_a_lost_short_video_counts_as_one_episode(tmp_path, videos):
    write_moving(tmp_path / "a.ts", 100, codec="mpeg2video", gop=20)
    (tmp_path / "a.ts").write_bytes(spoil((tmp_path / "a.ts").read_bytes(), 0.5))
    kept, lost = parts(read_all(tmp_path, length=1000))
    assert sum(bad.episodes for bad in lost) == pytest.approx(1 - kept / 100, abs=0.03)


def test_the_lost_end_of_a_truncated_video_counts_as_the_episodes_it_held(tmp_path, videos):
    data = (videos / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    kept, (bad,) = parts(read_all(tmp_path))
    assert kept % LENGTH == 0 and "cut short" in bad.reason
    assert kept + LENGTH * bad.episodes == pytest.approx(FRAMES, abs=5)
    (bad,) = read_all(tmp_path, length=FRAMES)
    assert 0.99 < bad.episodes <= 1


def test_a_unit_lists_the_lost_part_with_its_number_of_episodes_and_place(tmp_path, videos):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.mp4").write_bytes(spoil((videos / "a.mp4").read_bytes(), 0.14))
    source = VideoSource(str(tmp_path / "set"), ENTRY, FORM, episode_frames=LENGTH)
    (unit,) = make_plan(source, None, None, 1 << 30)
    run_unit(unit, source, str(tmp_path / "out"))
    (record,) = index.read_manifests(str(tmp_path / "out"))
    (lost,) = record.left_out
    assert 0 < lost.episodes < 0.5 and lost.kind == "damaged" and " s is lost" in lost.reason
    assert record.frames == pytest.approx(FRAMES - LENGTH * lost.episodes, abs=2)


def test_a_single_episode_is_never_read_in_part(tmp_path, videos):
    (tmp_path / "a.mp4").write_bytes(spoil((videos / "a.mp4").read_bytes(), 0.14))
    with pytest.raises(SourceError, match=r"a\.mp4 can't be used as a video: .* is lost"):
        read_video(tmp_path / "a.mp4")
    assert read_video(tmp_path / "a.mp4", max_frames=100).num_frames == 100
    with pytest.raises(BadEpisodeError, match="is lost"), (tmp_path / "a.mp4").open("rb") as file:
        list(decoded(file))
