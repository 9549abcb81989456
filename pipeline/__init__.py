"""Stage 1: turns robot data sets and human video into episode shards."""

from pipeline.episodes.episode import Episode
from pipeline.episodes.shards import open_shard

__all__ = ["Episode", "open_shard"]
