"""Stage 1: robot data sets and human video become episode shards."""

from pipeline.episodes.episode import Episode
from pipeline.episodes.shards import open_shard

__all__ = ["Episode", "open_shard"]
