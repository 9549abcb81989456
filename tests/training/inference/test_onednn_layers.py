import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.inference.onednn_layers import OneDnnConvolution, OneDnnLinear, OneDnnUpsample


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 300])
@pytest.mark.parametrize("shape", [(48, 33), (520, 301)])
def test_linear_layer_equals_the_plain_one(bias, rows, shape):
    layer, inputs = nn.Linear(*shape, bias=bias), torch.randn(2, rows, shape[0])
    torch.testing.assert_close(OneDnnLinear(layer)(inputs), layer(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("side", [8, 40])
def test_convolution_equals_the_plain_one(kernel, side):
    layer, maps = nn.Conv2d(16, 24, kernel, padding=kernel // 2), torch.randn(2, 16, side, side)
    torch.testing.assert_close(OneDnnConvolution(layer)(maps), layer(maps), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 33)])
def test_upsampling_equals_nearest_neighbour_and_a_convolution(height, width):
    layer, maps = nn.Conv2d(16, 24, 3, padding=1), torch.randn(2, 16, height, width)
    expected = layer(F.interpolate(maps, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(OneDnnUpsample(layer)(maps), expected, atol=1e-5, rtol=1e-5)


def test_in_half_precision_the_plain_layer_is_used():
    layer, inputs = nn.Linear(8, 8).bfloat16(), torch.randn(1, 8).bfloat16()
    assert torch.equal(OneDnnLinear(layer)(inputs), layer(inputs))
