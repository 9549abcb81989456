"""Frames shrunk by FFmpeg look like frames shrunk afterwards; dropped frames are never converted."""

import io
import itertools

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from rlds_data import picture
from video_data import write_video

from pipeline.common.errors import BadEpisodeError
from pipeline.episodes.frames import shrink, shrunk_size
from pipeline.sources.video import source as video
from pipeline.sources.video.source import decoded

SIDE = 40


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other) ** 2))))


def moving(path, colours: str = "yuv420p", size: tuple[int, int] = (180, 240)) -> None:
    """Return a lossless video of a colourful picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, colours
        for t in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(t, *size), format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("colours", ["yuv420p", "yuv444p", "yuv422p10le"])
@pytest.mark.parametrize("size", [(180, 240), (241, 161)])
def test_shrinking_while_decoding_gives_the_same_picture_as_shrinking_afterwards(tmp_path, colours, size):
    moving(tmp_path / "a.mkv", colours, size)
    data = (tmp_path / "a.mkv").read_bytes()
    whole = list(decoded(io.BytesIO(data)))
    small = list(decoded(io.BytesIO(data), short_side=SIDE))
    assert [time for time, _ in small] == [time for time, _ in whole] == [0, 0.1, 0.2]
    for t, ((_, pixels), (_, shrunk)) in enumerate(zip(whole, small, strict=True)):
        assert pixels.shape == (*size, 3) and shrunk.shape == (*shrunk_size(*size, SIDE), 3)
        assert psnr(pixels, picture(t, *size)) > 30
        assert psnr(shrunk, shrink(pixels, shrunk.shape[:2])) > 38


@pytest.mark.parametrize("colours", ["gray", "bgr0", "yuv420p", "yuva420p", "yuv444p16le"])
@pytest.mark.parametrize("side", [SIDE, None])
def test_planes_of_pixels_equal_packed_pixels(tmp_path, colours, side):
    moving(tmp_path / "a.mkv", colours)
    scaling = video._KEEPING_SIZE if side is None else video.SHRINKING
    with av.open(str(tmp_path / "a.mkv")) as container, (tmp_path / "a.mkv").open("rb") as file:
        for frame, (_, pixels) in zip(container.decode(video=0), decoded(file, short_side=side), strict=True):
            height, width = pixels.shape[:2]
            packed = VideoReformatter().reformat(frame, width, height, "rgb24", interpolation=scaling).to_ndarray()
            assert np.array_equal(pixels, packed)


def test_a_small_picture_keeps_its_size_and_its_pixels(tmp_path):
    moving(tmp_path / "a.mkv", size=(32, 48))
    data = (tmp_path / "a.mkv").read_bytes()
    for (_, plain), (_, bounded) in zip(decoded(io.BytesIO(data)), decoded(io.BytesIO(data), short_side=SIDE), strict=True):
        assert np.array_equal(plain, bounded)


def test_every_codec_is_shrunk_to_the_right_picture(shared):
    folder = shared / "data" / "video" / "codecs"
    for path in sorted(path for path in folder.iterdir() if path.name != "testsrc2_mpeg4.mp4"):
        with path.open("rb") as one, path.open("rb") as other:
            frames = zip(decoded(one), decoded(other, short_side=80), strict=True)
            for (_, pixels), (_, shrunk) in itertools.islice(frames, 2):
                assert shrunk.shape[:2] == shrunk_size(*pixels.shape[:2], 80), path.name
                assert psnr(shrunk, shrink(pixels, shrunk.shape[:2])) > 30, path.name


def test_frames_dropped_by_sampling_are_never_converted_to_pixels(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", count=24, rate=12)
    converted = []

    class Counting:
        def __init__(self):
            self.scaler = VideoReformatter()

        def reformat(self, frame, *rest, **named):
            converted.append(frame.time)
            return self.scaler.reformat(frame, *rest, **named)

    monkeypatch.setattr(video, "VideoReformatter", Counting)
    with (tmp_path / "a.mp4").open("rb") as file:
        times = [time for time, _ in decoded(file, rate=3)]
    assert times == converted == pytest.approx([n / 3 for n in range(6)], abs=1 / 12)


def test_an_episode_with_too_many_bytes_of_frames_is_refused_early(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", count=24, rate=12)
    monkeypatch.setattr(video, "MAX_EPISODE_BYTES", 3000)
    with pytest.raises(BadEpisodeError, match="smaller --episode_frames"), (tmp_path / "a.mp4").open("rb") as file:
        next(
            video._episodes(
                file, video.DatasetEntry("v", "", "video"), video.FrameForm(), video.SourceShard("train", 0, "a.mp4"), 24
            )
        )
