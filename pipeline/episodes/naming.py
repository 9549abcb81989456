"""Names of shards and episodes: builds and parses them."""

import hashlib
import re

# As in tensorflow-datasets, a split's name may contain hyphens; the number after the last hyphen is the shard's.
_SPLIT = r"[A-Za-z0-9_][A-Za-z0-9_-]*"
_SPLIT_NAME = re.compile(_SPLIT)
_SHARD = re.compile(rf"(?P<split>{_SPLIT})-(?P<index>\d{{6,}})\.(?P<ending>tar|arrow)")
_HASH_BYTES = 8
# Only this split is augmented and loses its held-out episodes; all others are for evaluation and stay unchanged.
TRAINING_SPLIT = "train"
HELD_OUT_SUFFIX = "_heldout"


def shard_name(split: str, index: int, ending: str) -> str:
    """Returns the file name of a shard, such as `train-000003.tar`."""
    return f"{split}-{index:06d}.{ending}"


def parse_shard_name(name: str) -> tuple[str, int] | None:
    """Returns (split, index) of a shard's file name; None if `name` is not one."""
    match = _SHARD.fullmatch(name)
    return (match["split"], int(match["index"])) if match else None


def is_split_name(name: str) -> bool:
    """Whether a split's name works in shard names: letters, digits, `_` and, except in front, `-`."""
    return _SPLIT_NAME.fullmatch(name) is not None


def episode_key(split: str, source_shard: int, record: int) -> str:
    """Returns the key of an episode from a numbered source file: its position there, stable across runs, without dots."""
    return f"{split}-{source_shard:05d}-{record:06d}"


def hashed_key(split: str, file: str, record: int) -> str:
    """Returns the key of an episode from a source file without a number; it does not depend on other files.

    Args:
        split: Split of the episode.
        file: Path of its file relative to the source's folder, so that all copies of the source give the same key.
        record: Its position in that file, from 0.
    """
    digest = hashlib.blake2b(file.encode(errors="surrogateescape"), digest_size=_HASH_BYTES).hexdigest()
    return f"{split}-{digest}-{record:06d}"


def split_of_key(key: str) -> str:
    """Returns the split of an episode's key."""
    return key.rsplit("-", 2)[0]


def held_out_split(split: str) -> str:
    """Returns the name of the split with the held-out episodes of `split`."""
    return split + HELD_OUT_SUFFIX


def printable_name(name: str) -> str:
    """Returns a name for manifests, tables and messages: escapes bytes that are not UTF-8, which local names may have."""
    # Most of a million names are ASCII; don't copy them.
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()
