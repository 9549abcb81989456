"""Truncated and damaged videos, and files that aren't videos, are left out with name and reason; others are kept."""

import io
import json
import struct

import av
import pytest
from rlds_data import picture

from pipeline.common.errors import SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.frames import FrameForm
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import run_unit
from pipeline.sources.base import BadEpisode
from pipeline.sources.video.containers import bytes_missing
from pipeline.sources.video.something_something import SomethingSource
from pipeline.sources.video.source import VideoSource, read_video

ENTRY = DatasetEntry("clips", "clips", "image", control_hz=None)
FORM = FrameForm("jpeg", 24)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
CONTAINERS = {"mp4": "mpeg4", "mov": "mpeg4", "mkv": "mpeg4", "webm": "libvpx-vp9", "avi": "mpeg4", "ts": "mpeg2video"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("videos")
    for ending, codec in CONTAINERS.items():
        with av.open(str(folder / f"a.{ending}"), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 96, 128, "yuv420p", 4_000_000
            for t in range(24):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(t, 96, 128), format="rgb24")))
            container.mux(stream.encode())
    return {ending: (folder / f"a.{ending}").read_bytes() for ending in CONTAINERS}


def read_one(folder, name: str, data: bytes) -> list:
    (folder / name).write_bytes(data)
    source = VideoSource(str(folder), ENTRY, FORM)
    return [item for _, item in source.read(source.plan()[0])]


@pytest.mark.parametrize("ending", CONTAINERS)
def test_every_truncation_is_detected_and_no_whole_file_is_called_truncated(tmp_path, made, ending):
    data = made[ending]
    assert bytes_missing(io.BytesIO(data)) == 0
    (whole,) = read_one(tmp_path, f"a.{ending}", data)
    assert whole.num_frames == 24
    for share in (0.02, 0.3, 0.5, 0.8, 0.95):
        (bad,) = read_one(tmp_path, f"a.{ending}", data[: int(len(data) * share) // 188 * 188 + 7])
        assert isinstance(bad, BadEpisode) and bad.kind == "damaged"


def test_half_an_avi_is_detected_although_its_frames_decode_without_a_stated_duration(tmp_path, made):
    half = bytearray(made["avi"][: len(made["avi"]) // 2])
    for header in (b"avih", b"strh"):
        # The number of frames and the length of the stream, which say how long it should be.
        place = half.index(header) + 8 + (16 if header == b"avih" else 32)
        half[place : place + 4] = bytes(4)
    (bad,) = read_one(tmp_path, "a.avi", bytes(half))
    assert isinstance(bad, BadEpisode) and "bytes are missing" in bad.reason


def test_half_of_a_real_avi_is_detected(shared, tmp_path):
    data = (shared / "data/video/codecs/testsrc2_mpeg4.avi").read_bytes()
    (bad,) = read_one(tmp_path, "a.avi", data[: len(data) // 2])
    assert "cut short" in bad.reason


def test_real_containers_give_the_number_of_missing_bytes(shared):
    for path in sorted((shared / "data/video").rglob("*.*")):
        data = path.read_bytes()
        if path.suffix in (".mp4", ".webm", ".mkv", ".avi") and len(data) > 5000:
            assert bytes_missing(io.BytesIO(data)) == 0, path.name
            assert bytes_missing(io.BytesIO(data[: len(data) // 2])) >= len(data) // 8, path.name


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_an_open_size_gives_no_missing_bytes(tmp_path, made, size):
    open_ended = b"RIFF" + struct.pack("<I", size) + made["avi"][8:]
    (episode,) = read_one(tmp_path, "a.avi", open_ended)
    assert episode.num_frames == 24


def test_several_riff_chunks_and_boxes_of_64_bits_are_followed():
    two = b"RIFF" + struct.pack("<I", 100) + bytes(100) + b"RIFF" + struct.pack("<I", 1000) + bytes(1000)
    large = struct.pack(">I4sQ", 1, b"mdat", 2000) + bytes(1984)
    for whole in (two, large):
        assert bytes_missing(io.BytesIO(whole)) == 0
        assert bytes_missing(io.BytesIO(whole[:-500])) == 500


@pytest.mark.parametrize("ending", ["mp4", "avi"])
def test_damage_in_the_middle_is_detected_if_the_decoder_notices(tmp_path, made, ending):
    data = bytearray(made[ending])
    middle = len(data) // 2
    data[middle : middle + 200] = b"\xa5" * 200
    before, bad, *_ = read_one(tmp_path, f"a.{ending}", bytes(data))
    assert before.num_frames < 24 and isinstance(bad, BadEpisode) and bad.kind == "damaged"


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile b.webm\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nb.webm\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    ],
    ids=["concat", "hls", "dash"],
)
def test_a_playlist_cannot_open_another_file(tmp_path, monkeypatch, made, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.webm").write_bytes(made["webm"])
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(SourceError, match=r"a\.mp4 can't be used as a video"):
        read_video(tmp_path / "a.mp4")


def test_a_file_that_is_not_a_video_is_listed_and_loses_only_itself(tmp_path, made):
    folder = tmp_path / "set"
    folder.mkdir()
    contents = {
        "a_sound": made["mp4"],
        "b_empty": b"",
        "c_pointer": POINTER,
        "d_random": bytes((n * n * 31 + n // 7) % 256 for n in range(30_000)),
        "e_half": made["mp4"][: len(made["mp4"]) // 2],
        "f_text": "Ünïcode".encode("latin-1") * 99,
        "g_sound": made["mp4"],
    }
    for name, data in contents.items():
        (folder / f"{name}.mp4").write_bytes(data)
    source = VideoSource(str(folder), ENTRY, FORM)
    (unit,) = make_plan(source, None, None, 1 << 30)
    run_unit(unit, source, str(tmp_path / "out"))
    (record,) = index.read_manifests(str(tmp_path / "out"))
    assert [entry["source_file"] for entry in record.entries] == ["a_sound.mp4", "g_sound.mp4"]
    listed = [(item.source_file[0], item.source_record, item.kind) for item in record.left_out]
    assert listed == [(name, 0, "damaged") for name in "bcdef"]
    assert "it is a Git LFS pointer. Fetch the file itself" in record.left_out[1].reason


def test_episodes_before_the_truncation_are_kept_and_the_loss_has_the_next_position(tmp_path, made):
    (tmp_path / "a.avi").write_bytes(made["avi"][: int(len(made["avi"]) * 0.7)])
    source = VideoSource(str(tmp_path), ENTRY, FORM, episode_frames=5)
    items = list(source.read(source.plan()[0]))
    assert len(items) >= 3 and [position for position, _ in items] == list(range(len(items)))
    assert all(item.num_frames == 5 for _, item in items[:-1]) and "cut short" in items[-1][1].reason


def test_metadata_that_is_not_utf8_is_replaced(tmp_path, made):
    data = made["mkv"]
    tagged = data.replace(b"Lavf", b"\xff\xfe\xfd\xfc")
    assert tagged != data
    (episode,) = read_one(tmp_path, "a.mkv", tagged)
    assert episode.num_frames == 24


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", b"file,text\na.mp4,caf\xe9\n"),
        ("metadata.csv", b'file,text\na.mp4,"never closed\n'),
        ("metadata.csv", b"file,text\na.mp4," + b"x" * 200_000 + b"\n"),
        ("metadata.csv", b"file\na.mp4\n"),
        ("metadata.jsonl", b'{"file": "a.mp4", "text": "caf\xe9"}\n'),
        ("metadata.jsonl", b"[" * 100_000),
        ("metadata.jsonl", b'{"file": "../a.mp4", "text": "x"}\n'),
        ("metadata.jsonl", b'{"file": ["a.mp4"], "text": "x"}\n'),
    ],
)
def test_unreadable_captions_are_an_error_that_names_the_file(tmp_path, made, name, content):
    (tmp_path / "a.mp4").write_bytes(made["mp4"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=name):
        VideoSource(str(tmp_path), ENTRY, FORM).plan()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.json", b"\xff\xfe"),
        ("train.json", b"[" * 100_000),
        ("train.json", b'{"id": "1"}'),
        ("train.json", b'[{"id": "../1", "template": "a", "label": "a"}]'),
        ("train.json", b'["1"]'),
        ("test-answers.csv", b"1;caf\xe9\n"),
        ("test-answers.csv", b"1;" + b"x" * 200_000),
    ],
)
def test_unreadable_labels_are_an_error_that_names_the_file(tmp_path, name, content):
    (tmp_path / "labels").mkdir()
    for part in ("train", "validation", "test"):
        (tmp_path / "labels" / f"{part}.json").write_text(json.dumps([{"id": "7"}] if part == "test" else []))
    (tmp_path / "labels" / name).write_bytes(content)
    with pytest.raises(SourceError, match=name):
        SomethingSource(str(tmp_path), ENTRY, FORM, ["all"]).plan()
