"""The metrics of an evaluation by name; what computes them is in `training.evaluation.metrics`."""

from typing import Literal

Metric = Literal["mse", "psnr", "ssim", "lpips", "fvd"]
FRAME_METRICS: tuple[Metric, ...] = ("mse", "psnr", "ssim", "lpips")
# Need no weights.
DEFAULT_METRICS: tuple[Metric, ...] = ("mse", "psnr", "ssim")
