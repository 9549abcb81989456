import pytest
import torch

from pipeline.common.errors import ConfigError
from training.inference.devices import usable_device
from training.inference.session import WorldModel


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99", "hpu", ""])
def test_an_unavailable_device_is_refused_and_the_available_ones_are_listed(device):
    with pytest.raises(ConfigError, match=rf"^device '{device}' is not available; use one of: cpu"):
        usable_device(device)


def test_the_device_is_checked_before_the_model_is_located():
    with pytest.raises(ConfigError, match="is not available"):
        WorldModel.from_pretrained("/nowhere", device="banana")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_default_is_the_cpu_and_cuda_is_refused():
    assert usable_device(None) == usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match="device 'cuda' is not available; use one of: cpu"):
        usable_device("cuda")
