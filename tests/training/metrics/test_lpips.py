"""LPIPS equals torchmetrics, has gradients, and refuses wrong weights with a fix."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.functional.image import lpips as reference

from pipeline.common.errors import ConfigError, SourceError
from training.metrics.lpips import LPIPS, VGGFeatures


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    # The published file also has the classifier, which is ignored.
    save_file(VGGFeatures().state_dict() | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


def test_lpips_equals_torchmetrics(weights: Path, monkeypatch: pytest.MonkeyPatch):
    ours = LPIPS(str(weights))
    # Replaces only the backbone, which torchvision would download.
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda net, pretrained: ours.backbone.features)
    theirs = reference._NoTrainLpips(net="vgg")
    left, right = torch.rand(2, 3, 3, 40, 32)
    torch.testing.assert_close(ours(left, right), theirs(left, right, normalize=True).reshape(3), rtol=1e-4, atol=1e-7)


def test_equal_pictures_have_distance_zero_and_gradients_reach_only_the_prediction(weights: Path):
    lpips = LPIPS(str(weights))
    picture = torch.rand(1, 3, 16, 16)
    assert lpips(picture, picture).item() == 0
    moved = (picture + 0.1 * torch.rand_like(picture)).requires_grad_()
    lpips(moved, picture).sum().backward()
    assert moved.grad is not None and moved.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_a_plain_state_dict_equals_safetensors(weights: Path, tmp_path: Path):
    lpips = LPIPS(str(weights))
    torch.save(lpips.backbone.state_dict(), tmp_path / "vgg.pth")
    pictures = torch.rand(2, 1, 3, 16, 16)
    assert torch.equal(LPIPS(str(tmp_path / "vgg.pth"))(*pictures), lpips(*pictures))


@pytest.mark.parametrize("path", [None, "nowhere.pth"])
def test_missing_weights_are_refused_with_their_source(path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--metrics lpips needs .*download.pytorch.org.*vgg_weights"):
        LPIPS(path, "--metrics lpips")


def test_archives_that_run_code_and_other_networks_are_refused(tmp_path: Path):
    script = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(script)
    whole = tmp_path / "whole.pt"
    torch.save(torch.nn.Linear(2, 2), whole)
    # The format in the packages of the weights.
    arrays = tmp_path / "arrays.ckpt"
    arrays.write_bytes(pickle.dumps({"VGG16_0": {"Conv_0": {"bias": np.zeros(3, np.float32)}}}))
    for path in (script, whole, arrays):
        with pytest.raises(SourceError, match=r"plain PyTorch state dict.*`ivideogpt-fetch-weights`.*save_file"):
            LPIPS(str(path))
    other = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(3, 3)}, other)
    with pytest.raises(SourceError, match=r"26 of 26 parameters are missing"):
        LPIPS(str(other))
