"""The Fréchet distance equals its closed form, and I3D has the published architecture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.common.errors import ConfigError
from training.metrics.fvd import frechet_distance
from training.metrics.i3d import I3DFeatures, _padded, _Unit


def _with_moments(mean: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Features with exactly this mean and covariance: scaled +- rows of the root."""
    count = len(root)
    return np.concatenate([root, -root]) * np.sqrt(count) + mean


@given(shift=st.floats(-3, 3), left=st.floats(0.1, 4), right=st.floats(0.1, 4), seed=st.integers(0, 99))
def test_commuting_covariances_have_the_textbook_distance(shift: float, left: float, right: float, seed: int):
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
    scales = np.array([1.0, 2.0, 0.0])  # one direction without any spread
    features = [_with_moments(mean, factor * np.diag(scales) @ rotation) for mean, factor in ((0.0, left), (shift, right))]
    expected = 3 * shift**2 + (left - right) ** 2 * (scales**2).sum()
    assert frechet_distance(*features) == pytest.approx(expected, abs=1e-6)


def test_non_commuting_covariances_have_the_distance_of_two_by_two_matrices():
    left, right = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[3.0, 0.0], [0.0, 1.0]])
    features = [_with_moments(np.zeros(2), np.linalg.cholesky(covariance).T) for covariance in (left, right)]
    product = left @ right
    # For a 2 x 2 matrix, tr(A^(1/2)) = sqrt(tr A + 2 sqrt(det A)).
    overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert frechet_distance(*features) == pytest.approx(np.trace(left + right) - 2 * overlap)


@given(seed=st.integers(0, 99))
def test_the_distance_is_zero_to_itself_and_symmetric(seed: int):
    left, right = np.random.default_rng(seed).normal(size=(2, 4, 6))  # fewer rows than columns
    assert frechet_distance(left, left) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(left, right) == pytest.approx(frechet_distance(right, left))
    assert frechet_distance(left, right) > 0


@given(rows=st.tuples(st.integers(2, 9), st.integers(2, 9)), scale=st.floats(0.01, 1e3), seed=st.integers(0, 99))
def test_the_distance_of_few_videos_equals_a_formula_without_covariances(rows: tuple[int, int], scale: float, seed: int):
    """tr((S1 S2)^(1/2)) is the nuclear norm of X1 X2' / sqrt(n m) of the centred rows: no covariance, singular or not."""
    random = np.random.default_rng(seed)
    left, right = (random.normal(size=(count, 120), loc=shift) * scale for count, shift in zip(rows, (0.0, 0.5), strict=True))
    centred = [part - part.mean(axis=0) for part in (left, right)]
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum() / np.sqrt(rows[0] * rows[1])
    traces = sum(np.square(part).sum() / len(part) for part in centred)
    expected = np.square(left.mean(axis=0) - right.mean(axis=0)).sum() + traces - 2 * overlap
    # fp32, like the features of the network.
    found = frechet_distance(left.astype(np.float32), right.astype(np.float32))
    assert found == pytest.approx(expected, rel=1e-4)


def test_one_video_is_refused():
    with pytest.raises(ConfigError, match="at least 2 videos"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))


@given(size=st.integers(1, 40), kernel=st.integers(1, 7), stride=st.integers(1, 3))
def test_same_padding_leaves_one_position_per_stride(size: int, kernel: int, stride: int):
    padded = _padded(torch.zeros(1, 1, size, 1, 1), (kernel, 1, 1), (stride, 1, 1))
    positions = (padded.shape[2] - max(kernel, 1)) // stride + 1
    assert positions >= -(-size // stride)
    if kernel >= stride:
        assert positions == -(-size // stride)


def test_i3d_has_the_published_parameters_and_distinguishes_videos(tmp_path: Path):
    torch.manual_seed(0)
    network = I3DFeatures()
    # Carreira & Zisserman 2017, with 400 classes.
    assert sum(parameter.numel() for parameter in network.parameters()) == 12_697_264
    save_file(network.state_dict(), tmp_path / "i3d.safetensors")
    loaded = I3DFeatures().load(str(tmp_path / "i3d.safetensors"))
    videos = torch.rand(2, 9, 3, 16, 16)
    features = loaded(videos)
    assert features.shape == (2, 400)
    with pytest.raises(ConfigError, match="at least 9 frames, not 8"):
        loaded(videos[:, :8])
    assert not torch.allclose(features[0], features[1])
    torch.testing.assert_close(features[:1], loaded(videos[:1]), rtol=1e-4, atol=1e-6)


def test_every_batch_norm_of_i3d_divides_by_the_root_of_the_variance_plus_a_thousandth():
    """TF Hub's I3D does the same (Sonnet's batch norm); for such small variances, 1e-5 gives very different values."""
    units = [module for module in I3DFeatures().modules() if isinstance(module, _Unit) and module.bn is not None]
    assert len(units) == 57
    values = torch.rand(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for unit in units:
        norm = unit.bn.eval()
        channels = norm.num_features
        mean, variance, bias = (
            torch.linspace(-1, 1, channels),
            torch.linspace(1e-4, 1e-2, channels),
            torch.linspace(0, 1, channels),
        )
        norm.load_state_dict({"running_mean": mean, "running_var": variance, "bias": bias}, strict=False)
        video = values.expand(-1, channels, -1, -1, -1)
        by_channel = [part.reshape(-1, 1, 1, 1) for part in (mean, variance, bias)]
        expected = (video - by_channel[0]) / (by_channel[1] + 1e-3).sqrt() + by_channel[2]
        torch.testing.assert_close(norm(video), expected, rtol=1e-5, atol=1e-5)


def test_fvd_without_weights_is_refused_with_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"FVD needs the weights of I3D.*ivideogpt-fetch-weights.*i3d_pretrained_400\.pt"):
        I3DFeatures().load(None)
