"""Names of shards and episodes: one place for how they are spelled and read back."""

import re

_SHARD = re.compile(r"^(?P<split>[A-Za-z0-9_]+)-(?P<index>\d{6})\.(?P<ending>tar|arrow)$")
# The split that is augmented and loses its held-out episodes; all others are for evaluation and stay as they are.
TRAINING_SPLIT = "train"
HELD_OUT_SUFFIX = "_heldout"


def shard_name(split: str, index: int, ending: str) -> str:
    """File name of a shard, e.g. `train-000003.tar`."""
    return f"{split}-{index:06d}.{ending}"


def parse_shard_name(name: str) -> tuple[str, int] | None:
    """(split, index) of a shard's file name, or None where `name` isn't one."""
    match = _SHARD.match(name)
    return (match["split"], int(match["index"])) if match else None


def episode_key(split: str, source_shard: int, record: int) -> str:
    """Key of an episode: where it lies in its source, so stable across runs. Holds no dots."""
    return f"{split}-{source_shard:05d}-{record:06d}"


def split_of_key(key: str) -> str:
    """The split that an episode's key begins with."""
    return key.rsplit("-", 2)[0]


def held_out_split(split: str) -> str:
    """Name of the split that holds the held-out episodes of `split`."""
    return split + HELD_OUT_SUFFIX
