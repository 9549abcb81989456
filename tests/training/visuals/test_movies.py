import av
import numpy as np
import pytest
import torch

from training.visuals.movies import write_mp4
from training.visuals.pictures import Strip, side_by_side


def strips(side=32):
    frames = torch.zeros(5, 3, side, side)
    frames[:, 0] = torch.linspace(0, 1, 5)[:, None, None]
    return [Strip("truth", frames, 5), Strip("prediction", 1 - frames, 2)]


def decoded(path):
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)], stream.average_rate, stream.codec.name


# An odd side gives pictures of an odd width or height, which 4:2:0 can't hold as they are.
@pytest.mark.parametrize("side", [32, 33])
def test_the_video_shows_the_same_as_the_gif(tmp_path, side):
    write_mp4(str(tmp_path / "a.mp4"), strips(side), context_length=2, rate=5.0)
    frames, rate, _ = decoded(tmp_path / "a.mp4")
    assert len(frames) == 5
    assert rate == 5
    for number, frame in enumerate(frames):
        wanted = np.asarray(side_by_side(strips(side), number, 2))
        assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
        error = np.abs(frame[: wanted.shape[0], : wanted.shape[1]].astype(int) - wanted)
        assert error.mean() < 4


def test_the_video_is_h264_if_ffmpeg_can_encode_it(tmp_path):
    write_mp4(str(tmp_path / "a.mp4"), strips(), context_length=2)
    assert decoded(tmp_path / "a.mp4")[2] == ("h264" if "libx264" in av.codecs_available else "mpeg4")


@pytest.mark.parametrize(("rate", "played"), [(None, 4), (1 / 0.3, 10 / 3), (0.001, 0.1)])
def test_the_video_plays_at_the_rate_of_the_clip(tmp_path, rate, played):
    write_mp4(str(tmp_path / "a.mp4"), strips(), context_length=2, rate=rate)
    assert float(decoded(tmp_path / "a.mp4")[1]) == pytest.approx(played, rel=1e-3)


def test_a_failed_video_leaves_no_file(tmp_path):
    broken = [Strip("truth", torch.zeros(2, 3, 8, 8), 2), Strip("short", torch.zeros(1, 3, 8, 8), 1)]
    with pytest.raises(IndexError):
        write_mp4(str(tmp_path / "a.mp4"), broken, context_length=1)
    assert list(tmp_path.iterdir()) == []
