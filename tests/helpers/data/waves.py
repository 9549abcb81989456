"""Episodes of smooth waves that move, for tests of prediction."""

import numpy as np
import tiny_models

from pipeline import Episode
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.frames import encode_png
from pipeline.episodes.shards import EpisodeShardWriter

CLIPS = ClipsConfig(length=tiny_models.CLIP_LENGTH)


def pixels(count, seed=0, height=40, width=48):
    """Smooth moving pictures, (count, H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 8
    phase = random.uniform(0, 6, 3)
    time = np.arange(count)[:, None, None] / 4
    return np.stack([127 + 120 * np.sin(x + y * (c + 1) + time + phase[c]) for c in range(3)], axis=-1).astype(np.uint8)


def episode(key="train-00000-000000", count=12, seed=0, action_dim=tiny_models.ACTION_DIM, **facts):
    action = np.random.default_rng(seed).normal(size=(count, action_dim)).astype(np.float32) if action_dim else None
    known = {"rate": 5.0, "base_step": 3.0, "camera": "image", "language": "", "source_file": "x", "source_record": 0}
    return Episode(
        key=key,
        dataset="waves",
        frames=[encode_png(frame) for frame in pixels(count, seed)],
        height=40,
        width=48,
        action=action,
        **known | facts,
    )


def write_shard(path, episodes):
    with EpisodeShardWriter(path) as writer:
        for each in episodes:
            writer.add(each)
    return path
