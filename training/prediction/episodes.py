"""Opening what a user names as input: an npz, a video, an episode shard or a data set's folder, as episodes.

What a file is, its ending says. Episodes come one at a time, so that the first ones of a large data set cost no more than
themselves.
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
_NAMED = 5  # keys in one message


def open_episodes(path: str, camera: str | None = None) -> Iterator[Episode]:
    """The episodes behind a path or URL, in order.

    Args:
        path: An episode as npz, a video file, an episode shard (`.tar`), or a data set's folder of episode shards.
        camera: Name of the array of frames in an npz that holds several.

    Raises:
        SourceError: It isn't there, or is none of these.
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
            f"{path} is no input: name an episode as .npz, a video ({', '.join(video.ENDINGS)}), an episode shard (.tar), "
            "or a data set's folder with such shards"
        )
    return itertools.chain.from_iterable(open_shard(storage.join(path, name)) for name in shards)


def holds_shards(path: str) -> bool:
    """Whether a path that `open_episodes` takes leads to ingested episodes, and to no file of somebody else."""
    return not storage.basename(path).lower().endswith((*npz.ENDINGS, *video.ENDINGS))


def choose_episodes(
    episodes: Iterator[Episode], wanted: str | None, count: int, held_out: float | None, where: str, asked: bool = True
) -> list[Episode]:
    """The episodes that a command line asks for.

    Args:
        episodes: In order.
        wanted: Key of one episode, or its number from 0; None takes the first `count`.
        count: How many, at least one.
        held_out: Where given, only episodes that are held out from training at this share are looked at.
        where: For messages.
        asked: Whether the user gave `count`, and is told where there are fewer.

    Raises:
        SourceError: There is no such episode, or none at all.
    """
    kind = "" if held_out is None else " that is held out from training"
    if held_out is not None:
        episodes = (episode for episode in episodes if is_held_out(episode.dataset, episode.key, held_out))
    if wanted is None:
        chosen = list(itertools.islice(episodes, count))
        if not chosen:
            raise SourceError(f"{where} holds no episode{kind}")
        if len(chosen) < count and asked:
            log.warning("--episodes %d: %s holds %d%s", count, where, len(chosen), kind)
        return chosen
    keys: list[str] = []
    for number, episode in enumerate(episodes):
        if int(wanted) == number if wanted.isdigit() else wanted == episode.key:
            return [episode]
        keys.append(episode.key)
    if wanted.isdigit() and keys:
        there = f"it has {len(keys)}, numbered from 0"
    else:
        there = f"it has {', '.join(keys[:_NAMED])}" + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")
    raise SourceError(f"{where} holds no episode {wanted}{kind}" + (f"; {there}" if keys else ""))
