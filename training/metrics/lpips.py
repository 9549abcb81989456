"""LPIPS with VGG16: the perceptual difference of two pictures, as a metric and a training loss.

Zhang et al. 2018, version 0.1. VGG16 is built here because torchmetrics loads it only by a download through torchvision. The
layer weights are those of torchmetrics, and a test compares the result with torchmetrics.
"""

import importlib.resources

import torch
from torch import Tensor, nn

from training.metrics.backbones import VGG16, load_backbone

# Channels of VGG16's convolutions; "M" is a maximum pool (Simonyan & Zisserman 2015, configuration D, without the last pool).
_PLAN: tuple[int | str, ...] = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
# Layers of `features` whose outputs LPIPS uses: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
_TAPS = (3, 8, 15, 22, 29)
_TAP_CHANNELS = (64, 128, 256, 512, 512)
# Mean and deviation of ImageNet for pictures in [-1, 1], as in LPIPS.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-8
# Four halvings must leave at least one pixel.
MIN_SIDE = 16


class VGGFeatures(nn.Module):
    """The convolutions of VGG16, with torchvision's parameter names (`features.0.weight` and so on)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in _PLAN:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU()]
                channels = entry
        self.features = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Returns the five feature maps of LPIPS for normalised pictures (N, 3, H, W)."""
        found = []
        for number, layer in enumerate(self.features):
            pictures = layer(pictures)
            if number in _TAPS:
                found.append(pictures)
        return found


class LPIPS(nn.Module):
    """Learned perceptual distance of pictures in [0, 1], with frozen weights.

    Attributes:
        weights: The loaded weights of VGG16.
    """

    def __init__(self, vgg_weights: str | None, needed_for: str = "LPIPS") -> None:
        """Loads the weights.

        Args:
            vgg_weights: File with VGG16 weights; None uses the cache.
            needed_for: What needs LPIPS, for messages.

        Raises:
            ConfigError: There is no such file; the message says where to get it.
            SourceError: The file has other weights.
        """
        super().__init__()
        self.backbone = VGGFeatures()
        self.weights = load_backbone(VGG16, self.backbone, vgg_weights, needed_for)
        for number, weight in enumerate(_calibration()):
            self.register_buffer(f"channel_weights_{number}", weight)
        self.register_buffer("shift", torch.tensor(_SHIFT).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).reshape(1, 3, 1, 1))

    def forward(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Returns the distance of each pair of pictures; gradients reach `predicted`.

        Args:
            predicted: (N, 3, H, W) in [0, 1], at least 16 pixels a side.
            truth: Same shape and range.

        Returns:
            (N,) fp32; 0 for equal pictures.
        """
        total = predicted.new_zeros(len(predicted), dtype=torch.float32)
        pairs = zip(self.backbone(self._normalised(predicted)), self.backbone(self._normalised(truth)), strict=True)
        for number, (left, right) in enumerate(pairs):
            difference = (_unit_length(left) - _unit_length(right)).square()
            total = total + (difference * self.get_buffer(f"channel_weights_{number}")).sum(dim=1).mean(dim=(1, 2))
        return total

    def _normalised(self, pictures: Tensor) -> Tensor:
        return (2 * pictures.float() - 1 - self.get_buffer("shift")) / self.get_buffer("scale")


def _unit_length(features: Tensor) -> Tensor:
    """Normalises the feature vector of each position to length 1."""
    return features / (features.square().sum(dim=1, keepdim=True) + _EPSILON).sqrt()


def _calibration() -> list[Tensor]:
    """Returns the channel weights of LPIPS, (1, C, 1, 1) for each of the five feature maps."""
    file = importlib.resources.files("torchmetrics") / "functional" / "image" / "lpips_models" / "vgg.pth"
    with importlib.resources.as_file(file) as path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{number}.model.1.weight"].reshape(1, count, 1, 1) for number, count in enumerate(_TAP_CHANNELS)]
