"""How close predicted frames are to true ones: PSNR and SSIM, frame by frame, by torchmetrics."""

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

# Equal frames have an infinite PSNR, which neither a mean nor JSON can hold. Two 64 x 64 frames that differ by one 8-bit step
# in one value are 89 dB apart.
MAX_PSNR = 100.0


def psnr_per_frame(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each frame, at most `MAX_PSNR`.

    Args:
        predicted: (N, 3, H, W) in [0, 1].
        truth: Likewise.

    Returns:
        (N,) fp32.
    """
    values = peak_signal_noise_ratio(predicted, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=MAX_PSNR)


def ssim_per_frame(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11 pixels, deviation 1.5) of each frame.

    Args:
        predicted: (N, 3, H, W) in [0, 1], H and W at least 11.
        truth: Likewise.

    Returns:
        (N,) fp32.
    """
    values = structural_similarity_index_measure(predicted, truth, data_range=1.0, reduction="none")
    return torch.as_tensor(values).reshape(len(truth))
