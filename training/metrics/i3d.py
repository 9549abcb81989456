"""I3D (Carreira & Zisserman 2017), the network that computes the features of FVD.

It is built here so that it can load plain weights; the usual TorchScript archive runs its own code. FVD is defined with the
weights of TensorFlow Hub. Those of the I3D repository (such as `rgb_imagenet.pt`) have the same names and shapes but other
values. The features are the 400 Kinetics logits, averaged over time.
"""

import torch
from torch import Tensor, nn

from pipeline.common.errors import require
from training.metrics.backbones import I3D, LoadedWeights, load_backbone

FEATURES = 400
SIDE = 224
# Three halvings of the time axis must leave two positions for the last pool.
MIN_FRAMES = 9
# The value of Sonnet, which trained these weights. The usual PyTorch port has 1e-5, which changes the fourth digit of FVD; with
# 1e-3 the tests get the published values of TensorFlow.
BATCH_NORM_EPSILON = 1e-3
# Channels of an Inception block: 1x1; 1x1 then 3x3x3; 1x1 then 3x3x3; 1x1 after the pool.
_BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_Shape = tuple[int, int, int]


def _padded(video: Tensor, kernel: _Shape, stride: _Shape) -> Tensor:
    """Pads (N, C, T, H, W) with zeros like TensorFlow's SAME: an odd one goes to the end.

    Zeros also suit the maximum pools here, because their inputs come from a ReLU.
    """
    margins = []
    for size, width, step in zip(video.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        whole = max((-(-size // step) - 1) * step + width - size, 0)
        margins += [whole // 2, whole - whole // 2]
    return nn.functional.pad(video, margins)


class _Unit(nn.Module):
    """Convolution, batch norm and ReLU; for the logits, only a convolution with a bias."""

    def __init__(
        self, channels: int, outputs: int, kernel: _Shape = (1, 1, 1), stride: _Shape = (1, 1, 1), last: bool = False
    ) -> None:
        super().__init__()
        self._kernel, self._stride = kernel, stride
        self.conv3d = nn.Conv3d(channels, outputs, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(outputs, eps=BATCH_NORM_EPSILON)

    def forward(self, video: Tensor) -> Tensor:
        video = self.conv3d(_padded(video, self._kernel, self._stride))
        return video if self.bn is None else self.bn(video).relu()


class _Pool(nn.Module):
    """Maximum pool with SAME padding."""

    def __init__(self, kernel: _Shape, stride: _Shape) -> None:
        super().__init__()
        self._kernel, self._stride = kernel, stride

    def forward(self, video: Tensor) -> Tensor:
        return nn.functional.max_pool3d(_padded(video, self._kernel, self._stride), self._kernel, self._stride)


class _Inception(nn.Module):
    """Inception block with four parallel branches."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit(channels, widths[0])
        self.b1a, self.b1b = _Unit(channels, widths[1]), _Unit(widths[1], widths[2], (3, 3, 3))
        self.b2a, self.b2b = _Unit(channels, widths[3]), _Unit(widths[3], widths[4], (3, 3, 3))
        self.b3a, self.b3b = _Pool((3, 3, 3), (1, 1, 1)), _Unit(channels, widths[5])

    def forward(self, video: Tensor) -> Tensor:
        branches = [self.b0(video), self.b1b(self.b1a(video)), self.b2b(self.b2a(video)), self.b3b(self.b3a(video))]
        return torch.cat(branches, dim=1)


class I3DFeatures(nn.Module):
    """Computes 400 features per video; `load` sets and freezes its weights.

    Attributes:
        weights: The loaded weights; None before `load`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: LoadedWeights | None = None
        self.Conv3d_1a_7x7 = _Unit(3, 64, (7, 7, 7), (2, 2, 2))
        self.MaxPool3d_2a_3x3 = _Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, (3, 3, 3))
        self.MaxPool3d_3a_3x3 = _Pool((1, 3, 3), (1, 2, 2))
        channels = 192
        for name, widths in _BLOCKS.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = _Pool((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = _Pool((2, 2, 2), (2, 2, 2))
            self.add_module(name, _Inception(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = _Unit(channels, FEATURES, last=True)

    def load(self, path: str | None) -> "I3DFeatures":
        """Loads weights from a file, or from the cache if `path` is None."""
        self.weights = load_backbone(I3D, self, path, "FVD")
        return self

    @torch.no_grad()
    def forward(self, videos: Tensor) -> Tensor:
        """Returns the features of videos.

        Args:
            videos: (N, T, 3, H, W) in [0, 1], T at least 9; resized to 224 x 224, bilinear, without antialiasing.

        Returns:
            (N, 400) fp32.

        Raises:
            ConfigError: The videos are too short.
        """
        count, frames = videos.shape[:2]
        require(frames >= MIN_FRAMES, f"I3D needs videos of at least {MIN_FRAMES} frames, not {frames}")
        resized = nn.functional.interpolate(videos.flatten(0, 1).float(), (SIDE, SIDE), mode="bilinear", align_corners=False)
        video = (2 * resized - 1).unflatten(0, (count, frames)).transpose(1, 2)
        for name, module in self.named_children():
            if name != "logits":
                video = module(video)
        pooled: Tensor = self.logits(nn.functional.avg_pool3d(video, (2, SIDE // 32, SIDE // 32), stride=1))
        return pooled.mean(dim=(2, 3, 4))
