"""A video whose decoder would need more than a gibibyte is refused early; all others are read."""

import subprocess
import sys

import pytest
from peak_memory import PeakMemory
from video_data import write_moving

from pipeline.common.errors import SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm
from pipeline.sources.base import BadEpisode
from pipeline.sources.video import picture_memory
from pipeline.sources.video.source import VideoSource, read_video

GIB = 1 << 30
REFERENCES = ["ref=16:bframes=0", "ref=16:bframes=3:b-pyramid=normal"]
PICTURE = int((1.5 + 0.75) * 48 * 64)  # bytes of one in yuv420p, as they are estimated
COPIES = 9 * 48 * 64


@pytest.mark.parametrize("parameters", REFERENCES)
def test_a_video_with_too_many_reference_frames_for_memory_is_left_out_with_both_sizes(tmp_path, monkeypatch, parameters):
    write_moving(tmp_path / "a.mp4", 60, **{"x264-params": parameters})
    whole = read_video(tmp_path / "a.mp4")
    assert whole.num_frames == 60
    monkeypatch.setattr(picture_memory, "MAX_BYTES", 12 * PICTURE + COPIES)
    source = VideoSource(str(tmp_path), DatasetEntry("mine", "mine", "video"), FrameForm("jpeg"))
    ((_, bad),) = source.read(source.plan()[0])
    assert isinstance(bad, BadEpisode) and bad.kind == "unusable"
    assert "takes 13 pictures of 64 x 48 (yuv420p) at a time and so needs 0.00 GiB, above 0.000" in bad.reason
    with pytest.raises(SourceError, match=r"fewer reference frames"):
        read_video(tmp_path / "a.mp4")
    # Smaller copies of the same pictures leave room for more of them.
    monkeypatch.setattr(picture_memory, "MAX_BYTES", 40 * PICTURE + 9 * 6 * 8)
    small = VideoSource(str(tmp_path), source.entry, FrameForm("jpeg", 6))
    ((_, episode),) = small.read(small.plan()[0])
    assert isinstance(episode, Episode) and episode.num_frames == 60


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path, monkeypatch):
    write_moving(tmp_path / "a.mp4", 300, gop=12, **{"x264-params": "ref=2:bframes=2"})
    monkeypatch.setattr(picture_memory, "MAX_BYTES", 40 * PICTURE + COPIES)
    assert read_video(tmp_path / "a.mp4").num_frames == 300


_WRITE = """
import sys, av, numpy as np
with av.open(sys.argv[1], "w") as container:
    stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast", "x264-params": sys.argv[2]})
    stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuv420p"
    for t in range(20):
        frame = av.VideoFrame.from_ndarray(np.full((4320 * 3 // 2, 7680), 9 * t, np.uint8), format="yuv420p")
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
"""


@pytest.mark.soak
@pytest.mark.parametrize("short_side", [None, 80])
@pytest.mark.parametrize(("parameters", "room"), [(f"{REFERENCES[0]}:keyint=100", False), ("ref=4:bframes=2", True)])
def test_videos_of_8k_stay_under_a_gibibyte(tmp_path, parameters, room, short_side):
    # A new process, because the encoder's memory would hide the decoder's.
    subprocess.run([sys.executable, "-c", _WRITE, str(tmp_path / "a.mp4"), parameters], check=True)
    source = VideoSource(str(tmp_path), DatasetEntry("mine", "mine", "video"), FrameForm("jpeg", short_side))
    memory = PeakMemory()
    with memory.measured(GIB):
        ((_, item),) = source.read(source.plan()[0])
    assert memory.most > GIB >> 2
    assert isinstance(item, Episode) == room, item
    assert room or "of 7680 x 4320 (yuv420p)" in item.reason
