"""Residual blocks, resampling and self-attention of the autoencoders, with the parameter names of published checkpoints.

They compute the same as diffusers' VAE blocks with SiLU, group normalisation, no time embedding and no dropout. Without
diffusers a process starts twice as fast, and torch.compile can fuse the plain convolutions and normalisations.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.model import NORM_GROUPS

EPS = 1e-6


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))), with a 1 x 1 convolution of x if the number of channels changes."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, inner, eps=EPS)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, outer, eps=EPS)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else None

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, inner, H, W) to (N, outer, H, W)."""
        change = self.conv1(F.silu(self.norm1(hidden)))
        change = self.conv2(F.silu(self.norm2(change)))
        return (hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)) + change


class Downsample(nn.Module):
    """A convolution with stride 2, padded only at the bottom and the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H/2, W/2)."""
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class DownBlock(nn.Module):
    """`layers` residual blocks, then downsampling by 2, except in the last block."""

    def __init__(self, inner: int, outer: int, layers: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(outer if layer else inner, outer) for layer in range(layers))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(outer)])

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, inner, H, W) to (N, outer, H/2, W/2)."""
        for module in (*self.resnets, *self.downsamplers):
            hidden = module(hidden)
        return hidden


class UpBlock(nn.Module):
    """`layers` residual blocks, then upsampling by 2, except in the last block."""

    def __init__(self, inner: int, outer: int, layers: int, last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(outer if layer else inner, outer) for layer in range(layers))
        self.upsamplers = nn.ModuleList([] if last else [Upsample(outer)])

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, inner, H, W) to (N, outer, 2 H, 2 W)."""
        for module in (*self.resnets, *self.upsamplers):
            hidden = module(hidden)
        return hidden


class SelfAttention(nn.Module):
    """x + self-attention over all positions, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(NORM_GROUPS, channels, eps=EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        # A list, as in published checkpoints, where the second entry is a dropout of 0.
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        positions = self.group_norm(hidden).flatten(2).transpose(1, 2)
        query, key, value = (layer(positions).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        attended = self.to_out[0](F.scaled_dot_product_attention(query, key, value).squeeze(1))
        return hidden + attended.transpose(1, 2).reshape(hidden.shape)


class MidBlock(nn.Module):
    """A residual block, optional self-attention, and another residual block."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SelfAttention(channels)] if attention else [])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        for module in (self.resnets[0], *self.attentions, self.resnets[1]):
            hidden = module(hidden)
        return hidden
