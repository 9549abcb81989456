import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_offline.metrics import MAX_PSNR
from training.metrics.frame_metrics import psnr_per_frame, ssim_per_frame

FRAMES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=4))
def test_psnr_of_a_constant_offset_is_exact(offsets):
    truth = torch.full((len(offsets), 3, 16, 16), 0.25)
    predicted = truth + torch.tensor(offsets)[:, None, None, None]
    expected = [-20 * math.log10(offset) for offset in offsets]
    assert psnr_per_frame(predicted, truth).tolist() == pytest.approx(expected, abs=1e-3)


def test_equal_frames_have_the_maximum_score():
    assert psnr_per_frame(FRAMES, FRAMES).tolist() == [MAX_PSNR] * 3
    assert ssim_per_frame(FRAMES, FRAMES).tolist() == pytest.approx([1.0] * 3)


def test_each_frame_is_scored_independently():
    damaged = FRAMES.clone()
    damaged[1] *= 0.5
    for score in (psnr_per_frame, ssim_per_frame):
        together = score(damaged, FRAMES)
        alone = torch.cat([score(damaged[i : i + 1], FRAMES[i : i + 1]) for i in range(3)])
        assert together.tolist() == pytest.approx(alone.tolist())
        assert together.argmin() == 1


def test_ssim_of_flat_frames_is_the_luminance_term():
    """Without structure, SSIM is (2ab + c1) / (a^2 + b^2 + c1), c1 = 0.01^2."""
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim_per_frame(a, b).item() == pytest.approx(expected, abs=1e-4)


def test_ssim_of_a_frame_of_window_size_equals_that_window():
    """Wang et al. 2004: moments under a Gaussian of deviation 1.5, c1 = 0.01^2, c2 = 0.03^2; no pixels outside the frame."""
    a, b = FRAMES[:1, :, :11, :11].double(), FRAMES[1:2, :, :11, :11].double()
    bell = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2)).double()
    weights = bell[:, None] * bell / (bell.sum() ** 2)

    def moment(values):
        return (values * weights).sum(dim=(2, 3))

    mean_a, mean_b = moment(a), moment(b)
    spread = moment(a * a) - mean_a**2 + moment(b * b) - mean_b**2
    shared = moment(a * b) - mean_a * mean_b
    ssim = (2 * mean_a * mean_b + 1e-4) * (2 * shared + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (spread + 9e-4))
    assert ssim_per_frame(a.float(), b.float()).item() == pytest.approx(ssim.mean().item(), abs=1e-5)
