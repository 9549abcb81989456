"""Opens the input that a user names as episodes: an npz, a video, an episode shard or the folder of a data set.

The ending of the name decides what a file is. Episodes are read one at a time, so the first ones of a large data set come fast.
"""

import itertools
import logging
from collections.abc import Iterator

from pipeline import open_shard
from pipeline.common import storage
from pipeline.common.errors import SourceError
from pipeline.episodes.episode import Episode
from pipeline.episodes.naming import parse_shard_name
from pipeline.sources.npz import source as npz
from pipeline.sources.npz.source import read_npz
from pipeline.sources.video import source as video
from pipeline.sources.video.source import read_video
from tokenize_offline.clips.sampling import is_held_out

log = logging.getLogger(__name__)
_NAMED_KEYS = 5  # maximum number of keys in one message


def open_episodes(path: str, camera: str | None = None) -> Iterator[Episode]:
    """Returns the episodes of a path or URL, in order.

    Args:
        path: Episode (`.npz`), video, episode shard (`.tar`), or folder of a data set with episode shards.
        camera: Name of the array of frames in an npz with several.

    Raises:
        SourceError: The path does not exist or is none of these.
        ShardError: A shard is damaged.
    """
    kind = storage.basename(path).lower()
    if kind.endswith(npz.ENDINGS):
        return iter([read_npz(path, camera)])
    if kind.endswith(video.ENDINGS):
        return iter([read_video(path)])
    if kind.endswith(".tar"):
        return open_shard(path)
    shards = [name for name in storage.list_files(path) if name.endswith(".tar") and parse_shard_name(name)]
    if not shards:
        raise SourceError(
            f"{path} is not a valid input: use an episode (.npz), a video ({', '.join(video.ENDINGS)}), an episode shard "
            "(.tar), or the folder of a data set with episode shards"
        )
    return itertools.chain.from_iterable(open_shard(storage.join(path, name)) for name in shards)


def is_ingested(path: str) -> bool:
    """Returns whether the input of `open_episodes` is ingested episodes, not a single npz or video."""
    return not storage.basename(path).lower().endswith((*npz.ENDINGS, *video.ENDINGS))


def choose_episodes(
    episodes: Iterator[Episode], wanted: str | None, count: int, held_out: float | None, where: str, asked: bool = True
) -> list[Episode]:
    """Returns the episodes that a command line asks for.

    Args:
        episodes: Episodes in order.
        wanted: Key of one episode, or its number from 0; None takes the first `count`.
        count: Number of episodes, at least one.
        held_out: Use only episodes held out from training at this fraction; None uses all.
        where: Name of the input, for messages.
        asked: Whether the user gave `count`; then a smaller number of episodes is logged.

    Raises:
        SourceError: There is no such episode, or no episode.
    """
    kind = "" if held_out is None else " held out from training"
    if held_out is not None:
        episodes = (episode for episode in episodes if is_held_out(episode.dataset, episode.key, held_out))
    if wanted is None:
        chosen = list(itertools.islice(episodes, count))
        if not chosen:
            raise SourceError(f"{where} has no episode{kind}")
        if len(chosen) < count and asked:
            log.warning("--episodes %d: %s has only %d%s", count, where, len(chosen), kind)
        return chosen
    keys: list[str] = []
    for number, episode in enumerate(episodes):
        if int(wanted) == number if wanted.isdigit() else wanted == episode.key:
            return [episode]
        keys.append(episode.key)
    if wanted.isdigit() and keys:
        there = f"it has {len(keys)}, numbered from 0"
    else:
        there = f"it has {', '.join(keys[:_NAMED_KEYS])}" + (
            f" and {len(keys) - _NAMED_KEYS} more" if len(keys) > _NAMED_KEYS else ""
        )
    raise SourceError(f"{where} has no episode {wanted}{kind}" + (f"; {there}" if keys else ""))
