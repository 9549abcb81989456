"""How close predicted frames are to true ones: PSNR and SSIM (by torchmetrics), frame by frame.

Both agree with the published evaluation, so that numbers can stand beside its own.
"""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from tokenize_offline.metrics import psnr

# Pixels of SSIM's window. Windows that would reach beyond a frame don't count: torchmetrics' own mean has them, over mirrored
# pixels, which moves it by up to 0.02.
SSIM_WINDOW = 11
_MARGIN = SSIM_WINDOW // 2


def psnr_per_frame(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each frame, see `measures.psnr`.

    Args:
        predicted: (N, 3, H, W) in [0, 1].
        truth: Likewise.

    Returns:
        (N,) fp32.
    """
    errors = (predicted - truth).square().mean(dim=(1, 2, 3))
    return torch.from_numpy(psnr(errors.cpu().numpy())).to(errors)


def ssim_per_frame(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11 pixels, deviation 1.5) of each frame.

    The mean over all windows that lie within the frame, and over colours.

    Args:
        predicted: (N, 3, H, W) in [0, 1], H and W at least 11.
        truth: Likewise.

    Returns:
        (N,) fp32.
    """
    _, places = structural_similarity_index_measure(
        predicted, truth, sigma=1.5, data_range=1.0, k1=0.01, k2=0.03, reduction="none", return_full_image=True
    )
    return places[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].mean(dim=(1, 2, 3))
