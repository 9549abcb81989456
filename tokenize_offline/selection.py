"""Which episodes a recipe's quality limits leave out, decided from the indexes of all data sets at once; no shard is read.

Of duplicates the first one stays, in an order in which evaluation comes before training: splits that are not trained on, then
held-out episodes, then the others, each by data set and key. So what is evaluated is never trained on under another name.
Near duplicates are found by comparing every two episodes of equal length, which is exact and costs half a minute for 50,000
of them on one core; shards hold what they held, so another limit needs no ingest.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline import storage
from pipeline.errors import ShardError
from pipeline.index import INDEX_FILE, read_index
from pipeline.naming import TRAINING_SPLIT
from pipeline.quality import COLUMNS
from pipeline.recipe import QualityConfig
from tokenize_offline.clips import is_held_out

_BLOCK = 1024
_EARLIER = 8192
# Column -> limit of the recipe -> name of the reason.
_LIMITS = (
    ("static_share", "max_static", "static"),
    ("uniform_share", "max_uniform", "uniform"),
    ("repeated_share", "max_repeated", "repeated"),
    ("swap_score", "max_swap_score", "swapped"),
)


class Excluded(NamedTuple):
    """An episode that is left out.

    Attributes:
        dataset: Its data set.
        shard: File name of its episode shard.
        key: Its key.
        reason: `static`, `uniform`, `repeated`, `swapped`, `duplicate` or `near duplicate`.
    """

    dataset: str
    shard: str
    key: str
    reason: str


class Measured(NamedTuple):
    """What is asked of an episode.

    Attributes:
        dataset: Its data set.
        shard: File name of its episode shard.
        key: Its key.
        rank: 0 where its split isn't trained on, 1 where it is held out, 2 where it is for training.
        num_frames: Its length.
        quality: Column -> value, see `pipeline.quality.Quality`.
    """

    dataset: str
    shard: str
    key: str
    rank: int
    num_frames: int
    quality: Mapping[str, float | str | None]


def select(folders: Sequence[str], limits: QualityConfig, held_out: float) -> list[Excluded]:
    """The episodes that a recipe leaves out.

    Args:
        folders: Of all data sets, with their indexes.
        limits: The recipe's section.
        held_out: Share of held-out episodes (`clips.held_out`).

    Raises:
        ShardError: An index is missing, or its episodes were ingested before quality was measured.
    """
    if not limits.active:
        return []
    return exclude([episode for folder in folders for episode in _measured(folder, held_out)], limits)


def exclude(episodes: Sequence[Measured], limits: QualityConfig) -> list[Excluded]:
    """Those of `episodes` that are beyond a limit, or that repeat one that stays; see `select`."""
    found: list[Excluded] = []
    kept: list[Measured] = []
    seen: set[object] = set()
    for episode in sorted(episodes, key=lambda episode: (episode.rank, episode.dataset, episode.key)):
        reason = _beyond(episode, limits)
        content = episode.quality["content_hash"]
        if reason is None and limits.duplicates != "keep" and content in seen:
            reason = "duplicate"
        if reason is None:
            seen.add(content)
            kept.append(episode)
        else:
            found.append(Excluded(episode.dataset, episode.shard, episode.key, reason))
    if limits.duplicates == "near":
        near = _near_duplicates(kept, limits.near_bits)
        found += [Excluded(episode.dataset, episode.shard, episode.key, "near duplicate") for episode in near]
    return found


def _measured(folder: str, held_out: float) -> list[Measured]:
    dataset, path = storage.basename(folder), storage.join(folder, INDEX_FILE)
    rows = read_index(folder).to_pylist()
    old = [row for row in rows if row.get("content_hash") is None]
    if old:
        raise ShardError(
            f"{path} knows no quality of {len(old)} of its {len(rows)} episodes, the first in {old[0]['shard']}: they were "
            "ingested before it was measured. Ingest the data set again with --overwrite, or take the limits of `quality` out "
            "of the recipe"
        )
    episodes = []
    for row in rows:
        training = row["split"] == TRAINING_SPLIT
        rank = 0 if not training else 1 if is_held_out(dataset, row["key"], held_out) else 2
        quality = {name: row[name] for name in COLUMNS}
        episodes.append(Measured(dataset, row["shard"], row["key"], rank, row["num_frames"], quality))
    return episodes


def _beyond(episode: Measured, limits: QualityConfig) -> str | None:
    for column, limit, reason in _LIMITS:
        most, value = getattr(limits, limit), episode.quality[column]
        # An episode of one frame has no pairs, and nothing moves in it.
        if most is not None and float(1.0 if value is None else value) > most:
            return reason
    return None


def _near_duplicates(episodes: Sequence[Measured], bits: int) -> list[Measured]:
    """Those that are close to an earlier one that stays, among episodes of one length."""
    of_length: dict[int, list[Measured]] = collections.defaultdict(list)
    for episode in episodes:
        of_length[episode.num_frames].append(episode)
    found = []
    for group in of_length.values():
        hashes = np.array([np.frombuffer(bytes.fromhex(str(each.quality["perceptual_hash"])), np.uint8) for each in group])
        found += [group[place] for place in np.flatnonzero(~first_of_their_kind(hashes, bits))]
    return found


def first_of_their_kind(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Whether each hash differs in more than `bits` bits from all before it that are first of their kind, (N,) bool.

    Args:
        hashes: (N, B) uint8.
        bits: Greatest distance of two that are of one kind.
    """
    kept = np.empty((0, hashes.shape[1]), np.uint8)
    first = np.ones(len(hashes), bool)
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK]
        fresh = np.ones(len(block), bool)
        for earlier in range(0, len(kept), _EARLIER):
            fresh &= ~(_distances(block, kept[earlier : earlier + _EARLIER]) <= bits).any(axis=1)
        near = np.tril(_distances(block, block) <= bits, -1)
        for place in np.flatnonzero(near.any(axis=1)):
            fresh[place] &= not fresh[near[place]].any()
        first[start : start + _BLOCK] = fresh
        kept = np.concatenate([kept, block[fresh]])
    return first


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Hamming distances (N, M) of hashes (N, B) and (M, B), by a product of matrices: a ^ b = a + b - 2ab."""
    first, second = (np.unpackbits(hashes, axis=1).astype(np.float32) for hashes in (one, other))
    return first.sum(axis=1)[:, None] + second.sum(axis=1) - 2 * (first @ second.T)
