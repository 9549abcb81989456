"""Computes the metrics of an evaluation.

A metric whose weights are missing is an error before the evaluation starts; it is never left out silently.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.common.errors import ConfigError
from tokenize_offline.metrics import MAX_PSNR
from training.evaluation.metric_names import DEFAULT_METRICS, FRAME_METRICS
from training.metrics import i3d
from training.metrics.backbones import I3D
from training.metrics.frame_metrics import SSIM_WINDOW, psnr_per_frame, ssim_per_frame
from training.metrics.lpips import LPIPS, MIN_SIDE
from training.metrics.weights.published import I3D_KINETICS, VGG16_LPIPS

# Metrics where higher is better.
HIGHER_IS_BETTER = ("psnr", "ssim")
# I3D resizes all frames to 224 x 224; its first layers take 60 MB of activations per frame.
_VIDEOS_AT_ONCE = 4


def idle_weights_hint(metrics: Sequence[str]) -> str | None:
    """Returns a hint on metrics that are not requested although their weights are cached; None if there are none."""
    if tuple(metrics) != DEFAULT_METRICS:
        return None
    idle = [name for name, weights in (("lpips", VGG16_LPIPS), ("fvd", I3D_KINETICS)) if weights.cached()]
    if not idle:
        return None
    return f"the weights for {' and '.join(idle)} are cached: use them with --metrics [{','.join([*DEFAULT_METRICS, *idle])}]"


class MetricSet:
    """Scores videos with the requested metrics.

    Attributes:
        frame_metrics: Metrics of single frames, in the order of `frame_scores`.
        with_fvd: Whether FVD is requested.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        vgg_weights: str | None,
        i3d_weights: str | None,
        frames: int,
        side: int,
        device: torch.device,
    ) -> None:
        """Loads the networks that the metrics need.

        Args:
            metrics: Names of the metrics.
            vgg_weights: File with VGG16 weights for LPIPS; None uses the cache.
            i3d_weights: File with I3D weights for FVD; None uses the cache.
            frames: Number of frames per clip.
            side: Height and width of frames, in pixels.
            device: Device to compute on.

        Raises:
            ConfigError: Weights are missing, or clips are too small or too short for a metric.
            SourceError: A file has other weights.
        """
        least = {"ssim": SSIM_WINDOW, "lpips": MIN_SIDE}
        for name in metrics:
            if side < least.get(name, 1):
                raise ConfigError(f"{name} needs frames of at least {least[name]} pixels a side, not {side}: leave out {name}")
        if "fvd" in metrics and frames < i3d.MIN_FRAMES:
            raise ConfigError(f"fvd needs clips of at least {i3d.MIN_FRAMES} frames, not {frames}: leave out fvd")
        self.frame_metrics = tuple(name for name in FRAME_METRICS if name in metrics)
        self.with_fvd = "fvd" in metrics
        self._lpips = LPIPS(vgg_weights, "--metrics lpips").to(device) if "lpips" in metrics else None
        self._i3d = i3d.I3DFeatures().load(i3d_weights).to(device) if self.with_fvd else None
        self._device = device

    @torch.no_grad()
    def frame_scores(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Scores each frame with each metric.

        Args:
            predicted: (N, T, 3, S, S) in [0, 1], N videos of one clip.
            truth: (T, 3, S, S).

        Returns:
            (N, metrics, T) float64 on the CPU.
        """
        truth = truth.to(self._device)
        # One video at a time, to bound memory for any N.
        return torch.stack([self._scores_of_one(video.to(self._device), truth) for video in predicted])

    def _scores_of_one(self, video: Tensor, truth: Tensor) -> Tensor:
        rows = []
        for name in self.frame_metrics:
            if name == "mse":
                rows.append((video - truth).square().mean(dim=(1, 2, 3)))
            elif name == "psnr":
                rows.append(psnr_per_frame(video, truth))
            elif name == "ssim":
                rows.append(ssim_per_frame(video, truth))
            elif self._lpips is not None:
                rows.append(self._lpips(video, truth))
        return torch.stack(rows).double().cpu() if rows else torch.empty(0, len(video), dtype=torch.float64)

    def features(self, videos: Tensor) -> Tensor:
        """Returns the features of FVD, (N, 400) float64 on the CPU, for videos (N, T, 3, S, S) in [0, 1]."""
        if self._i3d is None:
            raise ValueError("FVD was not requested")
        parts = [self._i3d(part.to(self._device)) for part in videos.split(_VIDEOS_AT_ONCE)]
        return torch.cat(parts).double().cpu()

    def describe(self) -> dict[str, str]:
        """Returns a description of each metric, with every resize and the weights."""
        known = {
            "mse": "mean squared error of values in [0, 1]",
            "psnr": f"10 log10(1 / mse) in dB of each frame, at most {MAX_PSNR:g}",
            "ssim": f"structural similarity over windows within the frame, Gaussian of {SSIM_WINDOW} pixels, deviation 1.5, "
            "constants 0.01 and 0.03; torchmetrics",
        }
        described: dict[str, str] = {name: known[name] for name in self.frame_metrics if name in known}
        if self._lpips is not None:
            described["lpips"] = (
                "LPIPS v0.1 over VGG16 of values in [-1, 1] at the frames' own size, calibrated weights as torchmetrics ships "
                f"them; {self._lpips.weights.describe()}"
            )
        if self._i3d is not None and self._i3d.weights is not None:
            described["fvd"] = (
                f"Fréchet distance over the {i3d.FEATURES} logits of {I3D.name}, averaged over time; all frames of a clip, "
                "context included (of predictions as the tokenizer shows it), values in [-1, 1], resized to "
                f"{i3d.SIDE} x {i3d.SIDE}, bilinear with half-pixel centres (align_corners off), without antialiasing; "
                f"batch norm epsilon {i3d.BATCH_NORM_EPSILON:g}; covariances over n; "
                f"{self._i3d.weights.describe()}"
            )
        return described
