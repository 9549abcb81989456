"""Linear layers and convolutions whose weights lie as oneDNN computes with them, for inference in fp32 on a CPU.

Plain layers lay their weights out anew for every call, which for the few rows or small maps of one frame takes as long as the
arithmetic. The price is a second copy of the weights, taken when the layer is made: later changes of the weights are not seen.
Where oneDNN can't serve (a GPU, half precision, under the compiler, which chooses for itself) a layer is the plain one.
"""

import torch
from torch import Tensor, nn

_ROWS = 16  # that weights are laid out for: the layout is good for one row and for hundreds
_SIDE = 32  # of the maps that convolutions are laid out for, likewise
_SMALL, _FEW = 1 << 17, 8  # numbers in a matrix and rows: below both, the default library has less to set up
_PLAIN: tuple[str, list[float], str] = ("none", [], "")  # nothing fused behind a product


def packable(weight: Tensor) -> bool:
    """Whether layers with such weights are packed."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


class OneDnnLinear(nn.Module):
    """What `layer` gives for (..., inner): (..., outer)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        # A plain attribute: the layout is oneDNN's own, nothing that could be saved or moved.
        weight = layer.weight.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) if packable(weight) else None
        self._least = _FEW * layer.in_features if weight.numel() < _SMALL else 0

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inner) to (..., outer)."""
        if self._packed is None or torch.compiler.is_compiling() or inputs.numel() < self._least:
            plain: Tensor = self.layer(inputs)
            return plain
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.layer.bias, *_PLAIN)
        return outputs


class OneDnnConvolution(nn.Module):
    """What `layer` gives, a convolution of stride 1 that keeps the maps' size and has packable weights.

    Maps are kept with channels last, which suits what comes between convolutions too.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self._bias = layer.bias
        self._shape = ([side // 2 for side in layer.kernel_size], [1, 1], [1, 1], 1)
        size = [1, layer.in_channels, _SIDE, _SIDE]
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *self._shape, size)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inner, H, W) to (N, outer, H, W)."""
        maps = maps.contiguous(memory_format=torch.channels_last)
        outputs: Tensor = torch.ops.mkldnn._convolution_pointwise(maps, self._packed, self._bias, *self._shape, *_PLAIN)
        return outputs


class OneDnnUpsample(nn.Module):
    """Every pixel four times, then a 3 x 3 convolution, as one transposed convolution: 16 products a pixel in place of 36.

    Two of three taps of a row fall on the same pixel, so their weights are added up; outcomes differ by rounding.

    Args:
        layer: The convolution, with packable weights.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self._bias = layer.bias
        weight = _doubled(_doubled(layer.weight.detach()).transpose(2, 3)).transpose(2, 3).transpose(0, 1).contiguous()
        self._shape = ([1, 1], [0, 0], [2, 2], [1, 1], 1)
        size = [1, layer.in_channels, _SIDE, _SIDE]
        self._packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *self._shape, size)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, inner, H, W) to (N, outer, 2 H, 2 W)."""
        outputs: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            maps, self._packed, self._bias, *self._shape, *_PLAIN
        )
        return outputs


def _doubled(weight: Tensor) -> Tensor:
    """The four taps along a kernel's rows (..., 3, K) that a pixel has on the four doubled pixels around it."""
    first, middle, last = weight.unbind(dim=-2)
    return torch.stack([last, middle + last, first + middle, first], dim=-2)
