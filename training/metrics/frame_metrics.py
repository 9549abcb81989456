"""Computes PSNR and SSIM (with torchmetrics) of each frame. Both agree with the published evaluation."""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from tokenize_offline.metrics import psnr

# Pixels of SSIM's window. Only windows inside the frame count. The mean of torchmetrics also has windows over mirrored pixels
# beyond it, which changes the score by up to 0.02.
SSIM_WINDOW = 11
_MARGIN = SSIM_WINDOW // 2


def psnr_per_frame(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Returns the peak signal-to-noise ratio of each frame in dB.

    Args:
        predicted: (N, 3, H, W) in [0, 1].
        truth: Same shape and range.

    Returns:
        (N,) fp32.
    """
    errors = (predicted - truth).square().mean(dim=(1, 2, 3))
    return torch.from_numpy(psnr(errors.cpu().numpy())).to(errors)


def ssim_per_frame(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Returns the structural similarity of each frame (Wang et al. 2004: Gaussian window of 11 pixels, deviation 1.5).

    It is the mean over colours and over all windows inside the frame.

    Args:
        predicted: (N, 3, H, W) in [0, 1], H and W at least 11.
        truth: Same shape and range.

    Returns:
        (N,) fp32.
    """
    _, places = structural_similarity_index_measure(
        predicted, truth, sigma=1.5, data_range=1.0, k1=0.01, k2=0.03, reduction="none", return_full_image=True
    )
    return places[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].mean(dim=(1, 2, 3))
