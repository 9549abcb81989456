"""Which frames a training clip of the tokenizer holds: a pure function of the episode's length and a seed.

The published rule: out of a horizon of strides, the first frames are the context, one
stride apart, and the others are drawn without replacement and sorted, so that the model sees near and far futures. For
goal-conditioned models the frames are then shuffled: a goal stands in front as context and is no past of what follows.
"""

import numpy as np

from pipeline.config.model import TokenizerConfig


def training_frames(
    num_frames: int, stride: float, config: TokenizerConfig, generator: np.random.Generator, shuffled: bool = False
) -> np.ndarray:
    """Frame numbers of one training clip.

    Args:
        num_frames: Length of the episode.
        stride: Frames between neighbours of the horizon, at least 1.
        config: Its `context_length`, `segment_length` and `horizon` are used.
        generator: Source of the random choices.
        shuffled: Whether the frames come in random order.

    Returns:
        (segment_length,) int64, not decreasing unless shuffled; an episode shorter than the horizon repeats its last frame.
    """
    span = round((config.horizon - 1) * stride)
    start = int(generator.integers(0, max(num_frames - span, 1)))
    futures = generator.choice(
        np.arange(config.context_length, config.horizon), config.segment_length - config.context_length, replace=False
    )
    steps = np.concatenate([np.arange(config.context_length), np.sort(futures)])
    if shuffled:
        steps = generator.permutation(steps)
    return np.minimum(start + np.rint(steps * stride).astype(np.int64), num_frames - 1)
