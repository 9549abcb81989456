import pytest
import torch

from pipeline.common.errors import ConfigError
from training.inference.devices import usable_device
from training.inference.session import WorldModel


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99", "hpu", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    with pytest.raises(ConfigError, match=rf"^device '{device}' can't be used here; there is cpu"):
        usable_device(device)


def test_a_device_is_refused_before_a_model_is_looked_for():
    with pytest.raises(ConfigError, match="can't be used here"):
        WorldModel.from_pretrained("/nowhere", device="banana")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_none_is_taken_and_asking_for_one_is_refused():
    assert usable_device(None) == usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ConfigError, match="device 'cuda' can't be used here; there is cpu"):
        usable_device("cuda")
