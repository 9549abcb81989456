"""An episode with a damaged image is skipped, for every kind of damage and every form of frames."""

import dataclasses
import io
import random

import h5py
import numpy as np
import pytest
from downstream_data import write_robonet
from PIL import Image
from rlds_data import NAME, episode, picture, write_set

from pipeline import open_shard
from pipeline.common.errors import BadEpisodeError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes import index
from pipeline.episodes.frames import FrameForm, decode, encode_jpeg, encode_png
from pipeline.episodes.image_integrity import passes_integrity_check
from pipeline.ingest.plan import make_plan
from pipeline.ingest.work_unit import run_unit
from pipeline.sources.base import BadEpisode
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.rlds.source import RldsSource
from tokenize_offline.clips.decode import decode_frame

ENTRY = DatasetEntry(NAME, NAME, "image", version="0.1.0", control_hz=10.0, base_step=10.0)
FORMS = [FrameForm("source"), FrameForm("jpeg", 40), FrameForm("png", 40)]
NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
WHOLE = encode_jpeg(NOISE)
WHOLE_PNG = encode_png(NOISE)


def saved(kind: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(1, 120, 160)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def overwritten(data: bytes, place: int, block: bytes) -> bytes:
    return data[:place] + block + data[place + len(block) :]


MIDDLE = len(WHOLE) // 2
BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "html": b"<!DOCTYPE html><html></html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "gif cut in half": saved("GIF")[:2000],
    "webp cut in half": saved("WEBP")[:900],
    "bmp cut in half": saved("BMP")[:9000],
    "film": saved("GIF", save_all=True, append_images=[Image.new("RGB", (160, 120), "red")]),
    "film, webp": saved("WEBP", save_all=True, append_images=[Image.new("RGB", (160, 120), "red")]),
    "header only": WHOLE[:3],
    "cut in the header": WHOLE[:100],
    "cut in half": WHOLE[:MIDDLE],
    "cut before the end": WHOLE[:-2],
    "foreign block": overwritten(WHOLE, MIDDLE, random.Random(0).randbytes(4096)),
    "block of zeros": overwritten(WHOLE, MIDDLE, bytes(4096)),
    "another's tail": WHOLE[:MIDDLE] + saved("JPEG", quality=30)[300:],
    "png cut in half": WHOLE_PNG[: len(WHOLE_PNG) // 2],
    "png flipped bit": overwritten(WHOLE_PNG, len(WHOLE_PNG) // 2, bytes([WHOLE_PNG[len(WHOLE_PNG) // 2] ^ 4])),
    "png header flipped": overwritten(WHOLE_PNG, 17, b"\x01"),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.encoding)
@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_image_is_found_in_every_form(name, form):
    with pytest.raises(BadEpisodeError):
        form.keep(BROKEN[name])


def test_damage_that_only_decoding_finds_is_found_without_a_checksum():
    ended = WHOLE[:MIDDLE] + b"\xff\xd9"
    assert FrameForm("source").keep(ended)[0] == ended
    for form, checksummed in ((FrameForm("source"), False), (FrameForm("jpeg", 40), True)):
        with pytest.raises(BadEpisodeError, match="damaged"):
            form.keep(ended, checksummed=checksummed)


SOUND = {
    "jpeg": WHOLE,
    "padded": WHOLE + bytes(7),
    "progressive": saved("JPEG", progressive=True),
    "optimised": saved("JPEG", optimize=True),
    "restarts": saved("JPEG", restart_marker_blocks=2),
    "grey": saved("JPEG", mode="L"),
    "cmyk": saved("JPEG", mode="CMYK"),
    "comment and profile": saved("JPEG", comment=b"\xff\xda\xff\xd9" * 9, icc_profile=b"\xff\xd9" * 99),
    "thumbnail": saved("JPEG", exif=b"Exif\0\0" + saved("JPEG", quality=10)),
    "one colour": encode_jpeg(np.zeros((240, 320, 3), np.uint8)),
    "one colour, optimised": (lambda b: (Image.new("RGB", (640, 480)).save(b, "JPEG", optimize=True), b.getvalue())[1])(
        io.BytesIO()
    ),
    "png": WHOLE_PNG,
    "palette": saved("PNG", mode="P"),
    "gif": saved("GIF"),
    "webp": saved("WEBP"),
    "webp without loss": saved("WEBP", lossless=True),
    "webp with alpha": saved("WEBP", mode="RGBA"),
    "bmp": saved("BMP"),
    "interlaced or not": saved("PNG", mode="RGBA"),
}


@pytest.mark.parametrize("name", SOUND)
def test_an_intact_image_is_never_reported_as_damaged(name):
    data = SOUND[name]
    assert FrameForm("source").keep(data) == (data, decode(data).shape[:2])


@pytest.mark.parametrize("name", ["gif", "webp", "bmp", "palette"])
def test_frames_of_every_kind_decode_as_with_other_libraries(name):
    with Image.open(io.BytesIO(SOUND[name])) as image:
        right = np.array(image.convert("RGB"))
    assert np.array_equal(decode(FrameForm("png").keep(SOUND[name])[0]), right)


def test_kept_frames_are_checked_without_decoding(monkeypatch):
    monkeypatch.setattr("pipeline.episodes.frames._decode", None)
    for data in (WHOLE, WHOLE_PNG, SOUND["comment and profile"], SOUND["restarts"]):
        assert passes_integrity_check(data) and FrameForm("source").keep(data)[0] == data


def test_real_frames_pass_the_integrity_check(shared):
    source = RldsSource(str(shared / "data/rlds/bridge/0.1.0"), DatasetEntry("bridge", "bridge", "image"), FORMS[0])
    frames = [frame for shard in source.plan() for _, item in source.read(shard) for frame in item.frames]
    assert len(frames) > 50 and all(map(passes_integrity_check, frames))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.encoding)
def test_each_damaged_image_skips_its_episode_and_names_its_place(tmp_path, form):
    names = ["pointer", "cut in half", "foreign block", "png flipped bit"]
    good = WHOLE, WHOLE, WHOLE
    made = [
        episode(n, frames=3, image=lambda t, n=n: ([*good[:2], BROKEN[names[n // 2]]] if n % 2 else good)[t]) for n in range(8)
    ]
    folder = write_set(tmp_path, episodes=made, per_shard=8)
    source = RldsSource(str(folder), ENTRY, form)
    unit = make_plan(source, ["train"], None, 1)[0]
    run_unit(unit, source, str(tmp_path / "out"))
    (manifest,) = index.read_manifests(str(tmp_path / "out"))
    assert [entry["source_record"] for entry in manifest.entries] == [0, 2, 4, 6]
    assert [(item.source_record, item.kind) for item in manifest.left_out] == [(n, "damaged") for n in (1, 3, 5, 7)]
    assert all(item.source_file.startswith(NAME) and item.reason for item in manifest.left_out)


def test_kept_jpegs_without_a_checksum_are_decoded(tmp_path):
    path = tmp_path / "a.hdf5"
    write_robonet(path)
    source = RobonetSource(str(tmp_path), DatasetEntry("tfds_robonet", "tfds_robonet", "image"), FrameForm("source"))
    ((_, sound),) = source.read(source.plan()[0])
    assert sound.num_frames == 5
    with h5py.File(path, "a") as file:
        data = file["env/cam0_video/frame3"]
        flipped = decodes_with_a_warning(data[()].tobytes())
        attributes = dict(data.attrs)
        del file["env/cam0_video/frame3"]
        file["env/cam0_video/frame3"] = np.frombuffer(flipped, np.uint8)
        file["env/cam0_video/frame3"].attrs.update(attributes)
    assert passes_integrity_check(flipped)
    ((_, bad),) = source.read(source.plan()[0])
    assert isinstance(bad, BadEpisode) and bad.kind == "damaged" and "image is damaged" in bad.reason


def decodes_with_a_warning(data: bytes) -> bytes:
    """Returns the image with one flipped bit that only decoding finds."""
    for place in range(len(data) // 2, len(data) - 2):
        for bit in range(8):
            flipped = overwritten(data, place, bytes([data[place] ^ 1 << bit]))
            try:
                decode(flipped)
            except BadEpisodeError:
                if passes_integrity_check(flipped):
                    return flipped
    raise AssertionError("no such bit")


def with_stray_bytes(data: bytes, marker: bytes, stray: bytes = bytes(range(1, 25))) -> bytes:
    place = data.rindex(marker)
    return data[:place] + stray + data[place:]


STRAY = {
    "before the end": with_stray_bytes(WHOLE, b"\xff\xd9"),
    "many before the end": with_stray_bytes(WHOLE, b"\xff\xd9", bytes(range(1, 250)) * 9),
    "zeros before the end": with_stray_bytes(WHOLE, b"\xff\xd9", bytes(40)),
    "before a restart": with_stray_bytes(saved("JPEG", restart_marker_blocks=5), b"\xff\xd3"),
    "before two restarts": with_stray_bytes(
        with_stray_bytes(saved("JPEG", restart_marker_blocks=5), b"\xff\xd3"), b"\xff\xd5", b"\x80\x55\x21"
    ),
    "in grey, before a restart": with_stray_bytes(saved("JPEG", mode="L", restart_marker_blocks=7), b"\xff\xd2"),
    "in a progressive one": with_stray_bytes(saved("JPEG", progressive=True), b"\xff\xd9", bytes(range(1, 99))),
    "another revision of JFIF": WHOLE.replace(b"JFIF\0\1", b"JFIF\0\7"),
}


@pytest.mark.parametrize("form", [FrameForm("source"), FrameForm("png")], ids=lambda form: form.encoding)
@pytest.mark.parametrize("name", STRAY)
def test_checksummed_images_with_stray_bytes_decode_as_with_other_libraries(name, form):
    data = STRAY[name]
    with Image.open(io.BytesIO(data)) as image:
        right = np.array(image.convert("RGB"))
    frame, size = form.keep(data)
    assert size == right.shape[:2] and np.array_equal(decode(frame, checksummed=True), right)


@pytest.mark.parametrize("name", [name for name in STRAY if name != "another revision of JFIF"])
def test_stray_bytes_without_a_checksum_are_damage(name):
    with pytest.raises(BadEpisodeError, match="extraneous bytes"):
        FrameForm("png").keep(STRAY[name], checksummed=False)


@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"], ids=["without an end", "ended"])
@pytest.mark.parametrize("form", [FrameForm("png"), FrameForm("jpeg", 40)], ids=lambda form: form.encoding)
def test_stray_bytes_do_not_hide_a_truncated_image(form, ending):
    data = saved("JPEG", restart_marker_blocks=5, quality=95)
    place = data.index(b"\xff\xd3")
    cut = data[:place] + b"\x12\x34\x56" + data[place : len(data) * 2 // 3] + ending
    with pytest.raises(BadEpisodeError, match="damaged"):
        form.keep(cut)


def test_frames_with_stray_bytes_are_kept_and_counted(tmp_path):
    odd = STRAY["before the end"]
    folder = write_set(tmp_path, [episode(0, frames=3, image=lambda t: odd if t else WHOLE)], per_shard=1)
    source = RldsSource(str(folder), ENTRY, FrameForm("png", 40))
    run_unit(make_plan(source, ["train"], None, 1)[0], source, str(tmp_path / "out"))
    (manifest,) = index.read_manifests(str(tmp_path / "out"))
    assert manifest.samples == 1 and not manifest.left_out
    assert list(manifest.statistics["passed_over"].values()) == [2]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.encoding)
def test_readers_of_a_shard_accept_stray_bytes_only_in_marked_episodes(tmp_path, form):
    odd = STRAY["before the end"]
    several = [episode(n, frames=3, image=lambda t, n=n: odd if n else WHOLE) for n in range(2)]
    source = RldsSource(str(write_set(tmp_path, several, per_shard=2)), ENTRY, form)
    run_unit(make_plan(source, ["train"], None, 1)[0], source, str(tmp_path / "out"))
    clean, stray = open_shard(str(tmp_path / "out/train-000000.tar"))
    assert not clean.stray_bytes and stray.stray_bytes == (form.encoding == "source")
    for frame in range(3):
        assert decode_frame(stray, frame).shape == (stray.height, stray.width, 3)
    with pytest.raises(BadEpisodeError, match="extraneous bytes"):
        decode_frame(dataclasses.replace(clean, height=120, width=160, frames=[odd]), 0)
