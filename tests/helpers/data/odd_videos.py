"""Folders of videos, whole and odd in what they say: streams, codecs, pixels, sizes, times, names, captions and labels."""

import contextlib
import errno
import functools
import io
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from downstream_data import write_robonet, write_vp2
from hypothesis import strategies as st
from odd_records import FORM, Draw, entry
from odd_video_writer import Stream, written
from rlds_data import picture

from pipeline.episodes.frames import FrameForm, encode_jpeg
from pipeline.sources.base import Source
from pipeline.sources.locate import open_source
from pipeline.sources.video.something_something import SomethingSource
from pipeline.sources.video.source import VideoSource

# Container, codec and pixels; what doesn't fit together stays out.
CONTAINERS = ["mp4", "matroska", "avi", "mov", "mpegts", "flv", "webm", "ogg", "nut", "asf", "mpeg"]
CODECS = [
    *(
        ("mpeg4", "yuv420p"),
        ("libx264", "yuv420p"),
        ("libx264", "yuv444p10le"),
        ("libx264", "gray"),
        ("libx265", "yuv420p10le"),
    ),
    *(("mjpeg", "yuvj420p"), ("mpeg2video", "yuv422p"), ("flv", "yuv420p"), ("wmv2", "yuv420p"), ("libvpx-vp9", "yuv420p")),
    *(("ffv1", "yuva444p16le"), ("ffv1", "gbrp10le"), ("ffv1", "gray16le"), ("png", "rgba"), ("png", "monob"), ("gif", "rgb8")),
    *(("rawvideo", "yuv410p"), ("rawvideo", "rgb565le"), ("qtrle", "argb"), ("prores_ks", "yuva444p10le"), ("huffyuv", "bgra")),
]
SIZES = [(16, 12), (16, 12), (64, 48), (2, 2), (1, 1), (300, 2), (2, 300), (17, 31), (400, 16), (2000, 16)]
STAMPS = st.sampled_from([0, 1, 1, 1, 1, 2, -1, -5, 40, 1000, 10**6, 1 << 33])
UNITS = [Fraction(1, 10), Fraction(1, 90000), Fraction(1, 1000), Fraction(1001, 30000), Fraction(5), Fraction(1, 2_000_000_000)]


@st.composite
def videos(draw) -> bytes:
    """A video file; empty where FFmpeg can't write it."""
    steps = draw(st.lists(STAMPS, max_size=6))
    streams = [
        Stream(*draw(st.sampled_from(CODECS)), draw(st.sampled_from(SIZES)), draw(st.sampled_from(UNITS)), steps)
        for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2, 3])))
    ]
    options = {"movflags": "frag_keyframe+empty_moov"} if draw(st.booleans()) else {}
    title = draw(st.sampled_from(["", "a\nb", "\x01", "é" * 300]))
    data = written(draw(st.sampled_from(CONTAINERS)), options, title, streams, draw(st.booleans()))
    return data * draw(st.sampled_from([1, 1, 1, 2]))


NAMES = [
    *(b"a.mp4", b"b.mkv", b"c.avi", b"d.webm", b"caf\xe9.mp4", b"a::b.mov", b"line\nbreak.ts", b"-rf.flv", b"~.wmv", b" .mp4"),
    *(
        b"a%20b.ogv",
        b"x/y/a.mp4",
        b"x/a.mp4",
        b".hidden/a.mp4",
        b"._a.mp4",
        b"a.mp4.part",
        b"Thumbs.db",
        b"A.MP4",
        b"a.mp4/b.mp4",
    ),
    *(
        b".mp4",
        b"a.mp4.mp4",
        b"file:.mp4",
        b"memory:x.nut",
        b"a{b}[c]*?.mp4",
        b"7.webm",
        b"12.mp4",
        b"sub/12.webm",
        b"\xff\xfe.avi",
    ),
]
SIDE_NAMES = [
    *(b"metadata.csv", b"metadata.jsonl", b"a.json", b"a.txt", b"meta/info.json", b"data/chunk-000/episode_000000.parquet"),
    *(b"a.hdf5", b"a.npz", b"x.zarr/.zgroup", b"a.tar", b"a.bag", b"index.parquet", b"dataset_info.json", b"features.json"),
    *(
        b"train/traj_0_to_1.tfrecords",
        b"hdf5/a.h5",
        b"labels/train.json",
        b"recordings",
        b"trajectory.h5",
        b"y.arrow",
        b"1.0.0/x",
    ),
]
CELLS = st.sampled_from(
    ["a.mp4", "b.mkv", "x/a.mp4", "caf\udce9.mp4", "../a.mp4", "", "say it", "é" * 20_000, "\x00", '"', 3, None, ["a"], {}]
)
HEADERS = st.sampled_from(
    [["file", "text"], ["text", "file"], ["file", "text", "x"], ["file"], ["file", "file"], [], ["File", "Text"]]
)


@st.composite
def captions(draw) -> bytes:
    """A table of captions, or lines of JSON, of any rows and columns."""
    rows = draw(st.lists(st.lists(CELLS, max_size=4), max_size=3))
    header = draw(HEADERS)
    if draw(st.booleans()):
        lines = [",".join(f'"{cell}"' if draw(st.booleans()) else str(cell) for cell in row) for row in [header, *rows]]
    else:
        lines = [json.dumps(dict(zip(header, row, strict=False)) if draw(st.booleans()) else row) for row in rows]
    return "\n".join(lines).encode(errors="surrogateescape")


def _put(folder: Path, name: bytes, data: bytes) -> None:
    """A file, where the names of others leave room for it."""
    path = folder / os.fsdecode(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise


def video(folder: Path, draw: Draw) -> Source:
    """Videos of any names beside captions and side files."""
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)):
        _put(folder, name, draw(videos()))
    for name in draw(st.lists(st.sampled_from(SIDE_NAMES[:4]), max_size=1)):
        _put(folder, name, draw(captions()))
    known = entry()
    rate = draw(st.sampled_from([None, 10.0, 0.01, 1000.0, 3.3]))
    form = draw(st.sampled_from([FORM, FORM, FrameForm("source"), FrameForm("png", 1)]))
    return VideoSource(
        str(folder), type(known)(**{**vars(known), "control_hz": rate}), form, draw(st.sampled_from([1, 2, 1000]))
    )


IDS = st.sampled_from(["7", "12", 7, "007", "-1", "", "٣", "9" * 40, 1.5, None, [], "a/b", True])
TEMPLATES = st.sampled_from(["Pouring [something] into [something]", "a [b", "[something]", "", "]" * 9, None, 3, "x" * 30_000])
PLACES = st.sampled_from([[], ["tea"], [None, "x"], "tea", None, {"a": 1}, [["x"], ["y"]], ["é" * 20_000, ""]])
OTHERS = {"id": IDS, "label": TEMPLATES, "template": TEMPLATES, "placeholders": PLACES, "more": PLACES}
LABEL_FILES = {"train.json": ("7", "12"), "validation.json": ("3",), "test.json": ("9",)}


@st.composite
def labels(draw, ids: tuple[str, ...]) -> object:
    """What a file of labels holds: mostly items, some of whose values are others or lacking."""
    if draw(st.integers(0, 9)) == 9:
        return draw(st.sampled_from([{}, None, 3, "x", [[]], [None], {"Pouring something": "0"}, [["id", "7"]]]))
    items: list[dict] = []
    for number in ids:
        template, places = "Pouring [something] into [something]", ["tea", "a cup"]
        items.append({"id": number, "label": "", "template": template, "placeholders": places})
        for key in draw(st.lists(st.sampled_from(["label", "template", "placeholders", "more", "id"]), max_size=1)):
            items[-1][key] = draw(OTHERS[key])
        for key in draw(st.lists(st.sampled_from(["label", "template", "placeholders", "placeholders", "id"]), max_size=1)):
            del items[-1][key]
    return items


def something(folder: Path, draw: Draw) -> Source:
    """Labels of any structure, in either layout, beside videos that bear their numbers or don't."""
    layout = draw(st.sampled_from(["something-something-v2-{}", "labels/{}"]))
    for name in ("train.json", *draw(st.lists(st.sampled_from(["validation.json", "test.json"]), max_size=2))):
        _put(folder, layout.format(name).encode(), json.dumps(draw(labels(LABEL_FILES[name]))).encode())
    classes = {"Pouring something into something": "0", "x": "1"}
    known = draw(st.sampled_from([None, classes, classes, {}, [], 3, None, "x", {"": []}]))
    if known is not None:
        _put(folder, layout.format("labels.json").encode(), json.dumps(known).encode())
    if draw(st.booleans()):
        cells = st.sampled_from(["7", "9", "Pouring something into something", "", '"', "é"])
        rows = draw(st.lists(st.lists(cells, max_size=3), max_size=3))
        _put(folder, layout.format("test-answers.csv").encode(), "\n".join(map(";".join, rows)).encode())
    for name in draw(
        st.lists(st.sampled_from([b"7.webm", b"12.mp4", b"3.avi", b"sub/12.webm", b"a.mp4", b".webm"]), max_size=2)
    ):
        _put(folder, name, draw(videos()))
    wanted = draw(st.sampled_from([["all"], ["all"], None, ["Pouring something into something"], ["x"], [""], ["Pouring"]]))
    return SomethingSource(str(folder), entry(), FORM, wanted)


@functools.cache
def _contents() -> dict[str, bytes]:
    """Sound files of several kinds, by the ending that they should have."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image=np.zeros((2, 12, 16, 3), np.uint8), action=np.zeros((2, 2)))
    found = {"": b"", "json": b"{}", "jsonl": b"[]", "npz": buffer.getvalue(), "jpg": encode_jpeg(picture(0, 12, 16))}
    for ending, write in (("hdf5", write_robonet), ("h5", write_vp2)):
        memory = io.BytesIO()
        write(memory)
        found[ending] = memory.getvalue()
    return found


def any_folder(folder: Path, draw: Draw) -> Source:
    """Files of every kind's name beside each other, of which whoever opens the folder has to tell what it is."""
    usual = draw(st.sampled_from([[], [b"a.npz"], [b"a.hdf5"], [b"hdf5/a.h5"], [b"a.mp4", b"x/b.mkv"]]))
    for name in [*usual, *draw(st.lists(st.sampled_from(NAMES + SIDE_NAMES), max_size=3))]:
        sound = _contents().get(os.fsdecode(name).rpartition(".")[2])
        odd = st.one_of(st.sampled_from([*_contents().values(), b'{"codebase_version": ["v3"]}']), videos(), captions())
        if sound is None and name in NAMES:
            odd = videos()
        _put(folder, name, sound if sound is not None and draw(st.integers(0, 3)) else draw(odd))
    for name in draw(st.lists(st.sampled_from(NAMES + SIDE_NAMES), max_size=1)):
        with contextlib.suppress(FileExistsError, FileNotFoundError, NotADirectoryError):
            (folder / os.fsdecode(name)).symlink_to(draw(st.sampled_from(["nowhere", ".", "/etc", os.fsdecode(name)])))
    kinds = [*(None,) * 9, "rlds", "npz", "video", "bair", "robonet", "vp2", "something-something-v2"]
    return open_source(entry(), str(folder), FORM, kind=draw(st.sampled_from(kinds)))
