"""Linear layers and convolutions whose weights are stored in oneDNN's own layout, for fp32 inference on a CPU.

Plain layers reorder their weights in every call. For the few rows or small maps of one frame, this takes as long as the
arithmetic; docs/performance.md has the speedup. The price is a second copy of the weights, made with the layer: later changes
of the weights have no effect. A layer is the plain one on a GPU, in half precision and inside `torch.compile`. The layers call
private operators of torch 2.13; the tests compare each with the plain layer.
"""

import torch
from torch import Tensor, nn

_ROWS = 16  # number of rows the weight layout is chosen for; it suits one row and hundreds
_SIDE = 32  # height and width of the maps the layout of a convolution is chosen for
# A plain layer is faster for a matrix with fewer weights than this and an input with fewer rows.
_SMALL_WEIGHTS, _FEW_ROWS = 1 << 17, 8
_NO_FUSION: tuple[str, list[float], str] = ("none", [], "")  # no operation follows the product


def supports_onednn(weight: Tensor) -> bool:
    """Returns whether these layers can hold such a weight."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


class OneDnnLinear(nn.Module):
    """The same function as `layer`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        # Not a parameter: a weight in oneDNN's layout cannot be saved or moved.
        weight = layer.weight.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) if supports_onednn(weight) else None
        self._least = _FEW_ROWS * layer.in_features if weight.numel() < _SMALL_WEIGHTS else 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (..., inner) to (..., outer)."""
        if self._packed is None or torch.compiler.is_compiling() or inputs.numel() < self._least:
            plain: Tensor = self.layer(inputs)
            return plain
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.layer.bias, *_NO_FUSION)
        return outputs


class OneDnnConvolution(nn.Module):
    """The same function as `layer`, a convolution of stride 1 that keeps the map size.

    Maps stay in channels-last order, which also suits the layers between convolutions.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self._bias = layer.bias
        self._shape = ([side // 2 for side in layer.kernel_size], [1, 1], [1, 1], 1)
        size = [1, layer.in_channels, _SIDE, _SIDE]
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *self._shape, size)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, inner, H, W) to (N, outer, H, W)."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        outputs: Tensor = torch.ops.mkldnn._convolution_pointwise(maps, self._packed, self._bias, *self._shape, *_NO_FUSION)
        return outputs


class OneDnnUpsample(nn.Module):
    """Nearest-neighbour upsampling by 2 and a 3 x 3 convolution as one transposed convolution: 16 products a pixel, not 36.

    Two of three taps of a row fall on the same pixel, so their weights are summed; results differ by rounding.

    Args:
        layer: The convolution after the upsampling.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self._bias = layer.bias
        weight = (
            _transposed_taps(_transposed_taps(layer.weight.detach()).transpose(2, 3))
            .transpose(2, 3)
            .transpose(0, 1)
            .contiguous()
        )
        self._shape = ([1, 1], [0, 0], [2, 2], [1, 1], 1)
        size = [1, layer.in_channels, _SIDE, _SIDE]
        self._packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *self._shape, size)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, inner, H, W) to (N, outer, 2 H, 2 W)."""
        outputs: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            maps, self._packed, self._bias, *self._shape, *_NO_FUSION
        )
        return outputs


def _transposed_taps(weight: Tensor) -> Tensor:
    """Returns the four taps (..., 4, K) of the transposed convolution for three taps (..., 3, K)."""
    first, middle, last = weight.unbind(dim=-2)
    return torch.stack([last, middle + last, first + middle, first], dim=-2)
