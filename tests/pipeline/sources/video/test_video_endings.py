"""Videos of every accepted format are read, and truncated videos are detected."""

import io
import re

import av
import pytest
from rlds_data import picture

from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm
from pipeline.sources.locate import open_source
from pipeline.sources.video.containers import bytes_missing

FRAMES = 24
WRITTEN = {
    "flv": ("flv", "flv"),
    "f4v": ("f4v", "libx264"),
    "wmv": ("asf", "wmv2"),
    "asf": ("asf", "msmpeg4"),
    "3gp": ("3gp", "mpeg4"),
    "3g2": ("3g2", "mpeg4"),
    "qt": ("mov", "mpeg4"),
    "divx": ("avi", "mpeg4"),
    "ogv": ("ogg", "libvpx"),
    "nut": ("nut", "mpeg4"),
    "mts": ("mpegts", "mpeg2video"),
    "m2ts": ("mpegts", "mpeg2video"),
    "m2t": ("mpegts", "mpeg2video"),
    "vob": ("vob", "mpeg2video"),
    "mpe": ("mpeg", "mpeg2video"),
    "m2v": ("mpeg2video", "mpeg2video"),
}
# Like MPG, they don't state their length.
PROGRAM_STREAMS = ("vob", "mpe")


@pytest.mark.parametrize("ending", WRITTEN)
def test_every_format_is_read_and_truncation_is_detected(tmp_path, ending):
    container_format, codec = WRITTEN[ending]
    path = tmp_path / f"a.{ending.upper()}"
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 96, 128, "yuv420p", 4_000_000
        for t in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(t, 96, 128), format="rgb24")))
        container.mux(stream.encode())
    source = open_source(DatasetEntry("own", "own", "image"), str(tmp_path), FrameForm("jpeg", 24))
    ((_, whole),) = source.read(source.plan()[0])
    assert isinstance(whole, Episode) and whole.num_frames == FRAMES
    data = path.read_bytes()
    for share in () if ending in PROGRAM_STREAMS else (0.3, 0.6, 0.9):
        # Except at the end of a packet of a transport stream, where truncation can't be detected.
        path.write_bytes(data[: int(len(data) * share) // 188 * 188 + 7])
        items = [item for _, item in source.read(source.plan()[0])]
        # Some of the beginning may be kept, but the loss is reported.
        assert not all(isinstance(item, Episode) for item in items), share


def test_an_ogg_file_truncated_between_pages_is_detected(tmp_path):
    path = tmp_path / "a.ogv"
    with av.open(str(path), "w", format="ogg") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 96, 128, "yuv420p", 4_000_000
        for t in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(t, 96, 128), format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert bytes_missing(io.BytesIO(data)) == 0
    pages = [found.start() for found in re.finditer(b"OggS\0", data)]
    for end in pages[3:]:
        assert bytes_missing(io.BytesIO(data[:end])) >= 1
