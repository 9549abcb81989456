"""Crops, resizes and colour-jitters the frames of a clip, all at once.

The colour operations are those of torchvision's ColorJitter, computed on floats, so that no step rounds to 8 bits.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokenize_offline.clips.sampling import Augmentation, Box

# Weights of red, green and blue in luma (ITU-R BT.601), as torchvision rounds them.
_LUMA = (0.2989, 0.587, 0.114)


def to_square(frames: np.ndarray, side: int, crop: Box | None = None) -> Tensor:
    """Resize frames to a square with an antialiased bilinear filter.

    Args:
        frames: (N, H, W, 3) uint8.
        side: Side S of the square in pixels.
        crop: Part of the frame to use; None uses the whole frame, whatever its aspect.

    Returns:
        (N, 3, S, S) float32 in [0, 1].
    """
    if crop is not None:
        frames = frames[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
    if pixels.shape[2:] == (side, side):
        return pixels.contiguous()
    return F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)


def augment(frames: np.ndarray, side: int, augmentation: Augmentation) -> Tensor:
    """Crop frames (N, H, W, 3) uint8, resize them to (N, 3, side, side) float32 in [0, 1], and apply the jitter."""
    pixels = to_square(frames, side, augmentation.crop)
    for name, amount in augmentation.jitter:
        pixels = _JITTER[name](pixels, amount)
    return pixels


def adjust_brightness(pixels: Tensor, factor: float) -> Tensor:
    """Blend (N, 3, H, W) in [0, 1] with black: factor 0 gives black, 1 changes nothing."""
    return (pixels * factor).clamp(0, 1)


def adjust_contrast(pixels: Tensor, factor: float) -> Tensor:
    """Blend (N, 3, H, W) in [0, 1] with each frame's mean luma."""
    mean = _luma(pixels).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(pixels), pixels, factor).clamp(0, 1)


def adjust_saturation(pixels: Tensor, factor: float) -> Tensor:
    """Blend (N, 3, H, W) in [0, 1] with each pixel's luma."""
    return torch.lerp(_luma(pixels).expand_as(pixels), pixels, factor).clamp(0, 1)


def adjust_hue(pixels: Tensor, shift: float) -> Tensor:
    """Rotate the hue of (N, 3, H, W) in [0, 1] by `shift` turns of the colour circle."""
    value, brightest = pixels.max(dim=1, keepdim=True)
    chroma = value - pixels.min(dim=1, keepdim=True).values
    red, green, blue = pixels.split(1, dim=1)
    span = chroma.clamp(min=torch.finfo(pixels.dtype).tiny)
    # Hue in sixths of the circle, by which channel is the brightest.
    sixths = torch.cat([(green - blue) / span, (blue - red) / span + 2, (red - green) / span + 4], dim=1)
    sixths = sixths.gather(1, brightest) + 6 * shift
    # Each channel falls from the value by the chroma as its distance on the circle grows.
    offsets = torch.tensor([5.0, 3.0, 1.0], device=pixels.device).view(1, 3, 1, 1)
    distance = (sixths + offsets) % 6
    return value - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1)


def _luma(pixels: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, device=pixels.device).view(1, 3, 1, 1)
    return (pixels * weights).sum(dim=1, keepdim=True)


_JITTER: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
