"""The measures that every stage reports: PSNR of frames, entropy and perplexity of ids. Without torch, for inspection."""

import numpy as np

# Equal frames have an infinite PSNR, which neither a mean nor JSON can hold. The published evaluation adds 1e-8 to the error,
# which leaves them 80 dB.
MAX_PSNR = 80.0


def psnr(squared_error: np.ndarray | float) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, at most `MAX_PSNR`: 10 log10(1 / error).

    Args:
        squared_error: Mean squared errors of values in [0, 1], of any shape.

    Returns:
        Likewise, float64.
    """
    return -10 * np.log10(np.maximum(squared_error, 10 ** (-MAX_PSNR / 10), dtype=np.float64))


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution; 0 where nothing was counted.

    Args:
        counts: How often each value occurs, one dimension.
    """
    used = counts[counts > 0]
    shares = used / used.sum()
    return float(-(shares * np.log(shares)).sum())


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy: the number of values that, used evenly, would say as much; 0 where nothing was counted."""
    return float(np.exp(entropy(counts))) if (counts > 0).any() else 0.0
