"""Transformed pixels equal independent formulas."""

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tokenize_offline.clips.sampling import Augmentation, Box
from tokenize_offline.clips.transforms import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment,
    to_square,
)

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 48, 72, 3), dtype=np.uint8)
PIXELS = torch.from_numpy(RNG.random((2, 3, 8, 8), dtype=np.float32))

colours = st.tuples(*[st.integers(0, 255)] * 3)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_resizing_equals_an_antialiased_bilinear_filter_of_the_whole_frame(side):
    resized = to_square(FRAMES, side)
    assert resized.shape == (3, 3, side, side)
    for frame, mine in zip(FRAMES, resized, strict=True):
        pillow = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
        # Pillow rounds to 8 bits after each of its two passes.
        assert np.abs(mine.permute(1, 2, 0).numpy() - pillow).max() < 1.6 / 255


def test_a_frame_of_the_right_size_is_not_changed():
    resized = to_square(FRAMES[:, :, :48], 48)
    assert np.array_equal((resized * 255).round().byte().permute(0, 2, 3, 1).numpy(), FRAMES[:, :, :48])


def test_a_crop_equals_resizing_the_cropped_part():
    box = Box(5, 7, 40, 36)
    kept = FRAMES[:, 5:45, 7:43]
    assert torch.equal(to_square(FRAMES, 32, box), to_square(kept, 32))


@given(colours, st.floats(-0.5, 0.5))
def test_hue_rotation_equals_colorsys(colour, shift):
    red, green, blue = (channel / 255 for channel in colour)
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
    mine = adjust_hue(torch.tensor([red, green, blue]).view(1, 3, 1, 1), shift).flatten()
    assert torch.allclose(mine, torch.tensor(expected), atol=2e-5)


@given(colours, st.floats(0, 2))
def test_saturation_and_brightness_blend_with_luma_and_black(colour, factor):
    pixels = torch.tensor(colour).div(255).view(1, 3, 1, 1)
    luma = 0.2989 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    for got, other in ((adjust_saturation(pixels, factor), luma), (adjust_brightness(pixels, factor), 0.0)):
        expected = [min(max(other + (channel - other) * factor, 0), 255) / 255 for channel in colour]
        assert torch.allclose(got.flatten(), torch.tensor(expected), atol=1e-5)


def test_contrast_blends_with_the_mean_luma_of_each_frame():
    flat = adjust_contrast(PIXELS, 0.0)
    for frame, levelled in zip(PIXELS, flat, strict=True):
        mean = (frame * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(0).mean()
        assert torch.allclose(levelled, mean.expand_as(levelled), atol=1e-6)


@pytest.mark.parametrize(
    ("operation", "neutral"), [(adjust_brightness, 1), (adjust_contrast, 1), (adjust_saturation, 1), (adjust_hue, 0)]
)
def test_neutral_amounts_change_nothing(operation, neutral):
    assert torch.allclose(operation(PIXELS, neutral), PIXELS, atol=1e-6)


def test_jitter_is_applied_in_the_given_order():
    steps = (("contrast", 1.4), ("brightness", 0.6))
    box = Box(0, 0, 48, 48)
    there = augment(FRAMES, 32, Augmentation(box, steps))
    back = augment(FRAMES, 32, Augmentation(box, steps[::-1]))
    plain = to_square(FRAMES, 32, box)
    assert torch.equal(there, adjust_brightness(adjust_contrast(plain, 1.4), 0.6))
    assert not torch.allclose(there, back, atol=1e-3)
    assert there.min() >= 0 and there.max() <= 1
