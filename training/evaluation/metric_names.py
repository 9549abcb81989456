"""Names of the metrics; `training.evaluation.metrics` computes them."""

from typing import Literal

Metric = Literal["mse", "psnr", "ssim", "lpips", "fvd"]
FRAME_METRICS: tuple[Metric, ...] = ("mse", "psnr", "ssim", "lpips")
# These need no weights.
DEFAULT_METRICS: tuple[Metric, ...] = ("mse", "psnr", "ssim")
