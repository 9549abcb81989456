"""Computes metrics that several stages report: PSNR of frames, entropy and perplexity of ids. It does not import torch."""

import numpy as np

# Equal frames would have an infinite PSNR, which breaks means and JSON. The published evaluation adds 1e-8 to the error, which
# also limits PSNR to 80 dB.
MAX_PSNR = 80.0


def psnr(mean_squared_error: np.ndarray | float) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / error), at most `MAX_PSNR`.

    Args:
        mean_squared_error: Mean squared errors of values in [0, 1], of any shape.

    Returns:
        PSNRs of the same shape, float64.
    """
    return -10 * np.log10(np.maximum(mean_squared_error, squared_error(MAX_PSNR), dtype=np.float64))


def squared_error(psnr: float) -> float:
    """Mean squared error of values in [0, 1] that gives a PSNR in dB: the inverse of `psnr`."""
    return float(10 ** (-psnr / 10))


def entropy(counts: np.ndarray) -> float:
    """Entropy of a distribution in nats; 0 if all counts are 0.

    Args:
        counts: Number of occurrences of each value, one dimension.
    """
    used = counts[counts > 0]
    shares = used / used.sum()
    return float(-(shares * np.log(shares)).sum())


def perplexity(counts: np.ndarray) -> float:
    """exp(entropy): the number of equally frequent values with the same entropy; 0 if all counts are 0."""
    return float(np.exp(entropy(counts))) if (counts > 0).any() else 0.0
