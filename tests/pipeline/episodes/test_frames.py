"""Frames keep their pixels; damaged and hostile ones are refused."""

import contextlib
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rlds_data import picture

from pipeline.common.errors import BadEpisodeError, ConfigError
from pipeline.config.recipe import DataConfig
from pipeline.episodes.frames import (
    FrameForm,
    decode,
    dimensions,
    encode_jpeg,
    encode_png,
    require_detail,
    shrink,
    shrunk_size,
    shrunk_to,
    sniff,
)

WHOLE = encode_jpeg(picture(1, 96, 128))
WHOLE_PNG = encode_png(picture(1, 96, 128))
FORMS = [FrameForm("source"), FrameForm("jpeg", 40), FrameForm("png", 40)]


def difference(a, b) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_png_is_lossless_and_jpeg_close_in_rgb_order():
    pixels = picture(3)
    assert np.array_equal(decode(encode_png(pixels)), pixels)
    assert difference(decode(encode_jpeg(pixels)), pixels) < 1.5


def test_the_first_bytes_decide_the_kind_of_an_image():
    assert (sniff(WHOLE), sniff(WHOLE_PNG)) == ("jpeg", "png")
    for data in (b"", b"GIF89a", b"\x00" * 50):
        with pytest.raises(BadEpisodeError, match="neither JPEG nor PNG"):
            sniff(data)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 250))
def test_shrinking_keeps_the_aspect_and_never_enlarges(height, width, short_side):
    small = shrunk_size(height, width, short_side)
    assert min(small) == min(short_side, height, width)
    long, other = max(height, width), max(small)
    assert abs(other - long * min(small) / min(height, width)) <= 0.5


@given(st.integers(64, 200), st.integers(64, 200), st.integers(24, 60))
@settings(max_examples=25, deadline=None)
def test_shrinking_while_decoding_equals_shrinking_afterwards(height, width, short_side):
    data = encode_jpeg(picture(5, height, width))
    target = shrunk_size(height, width, short_side)
    kept, size = FrameForm("png", short_side).keep(data)
    assert size == target == dimensions(kept)
    assert difference(decode(kept), shrink(decode(data), target)) < 4


def test_source_keeps_the_bytes():
    assert FrameForm("source").keep(WHOLE) == (WHOLE, (96, 128))
    assert FrameForm("source").keep(WHOLE_PNG) == (WHOLE_PNG, (96, 128))


def test_a_jpeg_that_is_small_enough_is_not_compressed_twice():
    assert FrameForm("jpeg", 96).keep(WHOLE) == (WHOLE, (96, 128))
    data, size = FrameForm("jpeg", 48).keep(WHOLE)
    assert size == (48, 64) == dimensions(data) and difference(decode(data), shrink(picture(1, 96, 128), size)) < 3
    assert sniff(FrameForm("jpeg", 96).keep(WHOLE_PNG)[0]) == "jpeg"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.encoding)
def test_swapped_channels_are_repaired_in_every_form(form):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :, 0] = 200
    swapped = encode_jpeg(np.ascontiguousarray(pixels[:, :, ::-1]))
    right = decode(form.keep(swapped, swap=True)[0])
    assert right[..., 0].mean() > 190 and right[..., 2].mean() < 10


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.encoding)
@pytest.mark.parametrize("data", [WHOLE, WHOLE_PNG], ids=["jpeg", "png"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_image_is_found_in_every_form(form, data, share):
    with pytest.raises(BadEpisodeError):
        form.keep(data[: int(len(data) * share)])


def test_padding_after_an_image_is_not_damage():
    padded = WHOLE + b"\0" * 7
    assert FrameForm("source").keep(padded) == (padded, (96, 128))


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_any_bytes_decode_or_raise_a_bad_episode(data):
    for start in (b"", WHOLE[:20], WHOLE_PNG[:40], WHOLE[:-200]):
        for form in FORMS:
            with contextlib.suppress(BadEpisodeError):
                assert form.keep(start + data)[1] == (96, 128)


def test_an_image_with_too_many_pixels_is_not_decoded():
    def chunk(kind, body):
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = (60_000).to_bytes(4) + (60_000).to_bytes(4) + bytes([8, 2, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    for form in FORMS:
        with pytest.raises(BadEpisodeError, match="60000 x 60000"):
            form.keep(bomb)


def test_depth_images_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(buffer, "PNG")
    with pytest.raises(BadEpisodeError, match="depth"):
        decode(buffer.getvalue())


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_colour_modes_become_rgb(mode):
    buffer = io.BytesIO()
    Image.fromarray(picture(2)).convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert decode(buffer.getvalue()).shape == (48, 64, 3)


def test_the_recipe_decides_the_form():
    assert FrameForm.of(DataConfig(resolution=64)) == FrameForm("jpeg", 80, 95)
    assert FrameForm.of(DataConfig(frames="source", resolution=64)) == FrameForm.of(DataConfig(frames="source", resolution=256))


@pytest.mark.parametrize(
    ("form", "short_sides", "shrunk"),
    [
        ({"encoding": "jpeg", "short_side": 80}, [80, 64], 80),
        ({"encoding": "jpeg", "short_side": 80}, [64], None),  # as large as its source
        ({"encoding": "source", "short_side": None}, [80], None),
        ({}, [80], None),
    ],
)
def test_only_frames_shrunk_below_the_needed_side_are_refused(form, short_sides, shrunk):
    assert shrunk_to(form, short_sides) == shrunk
    require_detail(shrunk, 80, "bridge")
    if shrunk is None:
        require_detail(shrunk, 256, "bridge")
        return
    with pytest.raises(ConfigError, match=r"bridge: .*80 pixels.*256.*--data.resolution 256"):
        require_detail(shrunk, 256, "bridge")
