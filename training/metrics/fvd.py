"""The Fréchet distance between two sets of features, each treated as a Gaussian: the distance of FVD."""

import numpy as np

from pipeline.common.errors import ConfigError


def frechet_distance(left: np.ndarray, right: np.ndarray) -> float:
    """Returns |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of means m and covariances S (Dowson & Landau 1982).

    The trace of the root is computed as the nuclear norm of S1^(1/2) S2^(1/2), which is real even for singular covariances
    (fewer rows than columns). Covariances divide by the number of rows, as in the published evaluation.

    Args:
        left: (N, D), at least two rows.
        right: (M, D), at least two rows.

    Raises:
        ConfigError: A set has fewer than two rows.
    """
    if min(len(left), len(right)) < 2:
        raise ConfigError("a Fréchet distance needs at least 2 videos on each side: evaluate more clips")
    mean_left, root_left, trace_left = _gaussian(left)
    mean_right, root_right, trace_right = _gaussian(right)
    overlap = np.linalg.svd(root_left @ root_right, compute_uv=False).sum()
    return float(np.square(mean_left - mean_right).sum() + trace_left + trace_right - 2 * overlap)


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the mean (D,), the symmetric root of the covariance (D, D), and the trace of the covariance."""
    values = features.astype(np.float64)
    mean = values.mean(axis=0)
    centred = values - mean
    covariance = centred.T @ centred / len(values)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T
    return mean, root, float(np.trace(covariance))
