"""Names of shards and episodes: one place for how they are spelled and read back."""

import hashlib
import re

# A split's name may hold hyphens, as those of tensorflow-datasets may; the number behind the last one is the shard's.
_SPLIT = r"[A-Za-z0-9_][A-Za-z0-9_-]*"
_SPLIT_NAME = re.compile(_SPLIT)
_SHARD = re.compile(rf"(?P<split>{_SPLIT})-(?P<index>\d{{6,}})\.(?P<ending>tar|arrow)")
_HASH_BYTES = 8
# The split that is augmented and loses its held-out episodes; all others are for evaluation and stay as they are.
TRAINING_SPLIT = "train"
HELD_OUT_SUFFIX = "_heldout"


def shard_name(split: str, index: int, ending: str) -> str:
    """File name of a shard, e.g. `train-000003.tar`."""
    return f"{split}-{index:06d}.{ending}"


def parse_shard_name(name: str) -> tuple[str, int] | None:
    """(split, index) of a shard's file name, or None where `name` isn't one."""
    match = _SHARD.fullmatch(name)
    return (match["split"], int(match["index"])) if match else None


def is_split_name(name: str) -> bool:
    """Whether shards can be called after a split: letters, digits, `_` and, but in front, `-`."""
    return _SPLIT_NAME.fullmatch(name) is not None


def episode_key(split: str, source_shard: int, record: int) -> str:
    """Key of an episode whose source numbers its files: where it lies there, so stable across runs. Holds no dots."""
    return f"{split}-{source_shard:05d}-{record:06d}"


def hashed_key(split: str, file: str, record: int) -> str:
    """Key of an episode in a file that has no number: of the file's own name, whatever other files come and go.

    Args:
        split: Of the episode.
        file: Path of its file relative to the source's folder, so that it is the same wherever a copy lies.
        record: Its position in that file, from 0.
    """
    digest = hashlib.blake2b(file.encode(errors="surrogateescape"), digest_size=_HASH_BYTES).hexdigest()
    return f"{split}-{digest}-{record:06d}"


def split_of_key(key: str) -> str:
    """The split that an episode's key begins with."""
    return key.rsplit("-", 2)[0]


def held_out_split(split: str) -> str:
    """Name of the split that holds the held-out episodes of `split`."""
    return split + HELD_OUT_SUFFIX


def printable_name(name: str) -> str:
    """A name as records, tables and messages have it: bytes that are no UTF-8, which a local disk may have, spelled out."""
    # Of a million names most are kept as they are, and no copy is made of them.
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()
