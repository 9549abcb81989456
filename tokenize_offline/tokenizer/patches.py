"""Cutting a latent map into patches and putting it together again, in the published order of elements."""

from torch import Tensor


def cut(latents: Tensor, size: int) -> Tensor:
    """(N, D, H, W) maps as (N, H/size W/size, size size D) patches, row by row, each in (row, column, channel) order."""
    number, channels, height, width = latents.shape
    blocks = latents.reshape(number, channels, height // size, size, width // size, size)
    return blocks.permute(0, 2, 4, 3, 5, 1).reshape(number, -1, size * size * channels)


def join(patches: Tensor, side: int, size: int) -> Tensor:
    """The inverse of `cut` for square maps: (N, (side/size)^2, size size D) patches as (N, D, side, side) maps."""
    number, across = patches.shape[0], side // size
    blocks = patches.reshape(number, across, across, size, size, -1)
    return blocks.permute(0, 5, 1, 3, 2, 4).reshape(number, -1, side, side)
