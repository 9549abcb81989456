"""The record of a shard: a small JSON file beside it, written last. A shard exists when its record does.

Episode shards and token shards share this protocol. A record carries a fingerprint of all that decides the shard's bytes,
together with the parts it was made of, so that a disagreement can be explained in words.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, ConflictError, DamagedEpisodeError, MissingEpisodeError, ShardError
from pipeline.common.json_files import read_json

HEAD_TAIL_HASH = "ends_sha256"  # what `inputs` call the hash of both ends of a source file
_REPAIRABLE = (DamagedEpisodeError.kind, MissingEpisodeError.kind)


@dataclass(frozen=True)
class SkippedEpisode:
    """An episode that was left out: where it lies in its source and why.

    Attributes:
        source_file: Name of the source file, relative to the source folder.
        source_record: Position in that file, from 0.
        reason: What is wrong with it.
        kind: `missing`, `damaged` or `unusable`; see `BadEpisodeError`.
        key: That it would have had; empty where nobody says.
        episodes: How many episodes it would have been, by what is known of its input; a part of one may be less than 1.
    """

    source_file: str
    source_record: int
    reason: str
    kind: str = BadEpisodeError.kind
    key: str = ""
    episodes: float = 1


@dataclass(frozen=True)
class ShardManifest:
    """What is known of a published shard.

    Attributes:
        shard: File name of the shard, e.g. `train-000003.tar`.
        fingerprint: Hash of `inputs`.
        inputs: Everything that decides the shard's bytes, in a form that JSON holds.
        samples: Episodes of an episode shard, rows of a token shard.
        frames: Frames in all samples.
        bytes: Size of the shard file.
        sha256: Of the shard file.
        left_out: Episodes that are not in the shard.
        entries: One mapping per sample, for the index; empty for token shards.
        statistics: Facts measured on the way (rates are left out: the same work gives the same record).
    """

    shard: str
    fingerprint: str
    inputs: dict[str, Any]
    samples: int
    frames: int
    bytes: int
    sha256: str
    left_out: list[SkippedEpisode] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(inputs: dict[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `inputs`."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_path(shard_path: str) -> str:
    """Where the record of a shard lies: the shard's name with `.json` for its own ending."""
    return shard_path.rsplit(".", 1)[0] + ".json"


def write_manifest(folder: str, record: ShardManifest) -> None:
    """Publish a record in `folder`. Call it after the shard itself is published, never before."""
    text = json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    storage.write_bytes(manifest_path(storage.join(folder, record.shard)), text.encode() + b"\n")


def read_manifest(path: str) -> ShardManifest:
    """Read one record file.

    Raises:
        ShardError: The file is no record.
    """
    try:
        raw = read_json(path)
        raw["left_out"] = [SkippedEpisode(**item) for item in raw["left_out"]]
        return ShardManifest(**raw)
    except (ValueError, TypeError, KeyError) as error:
        raise ShardError(f"{path} is not a shard record ({error}); delete it and run the command again") from error


def find_done(folder: str, shard: str, inputs: dict[str, Any], overwrite: bool = False) -> ShardManifest | None:
    """The record of a shard that is already there and was made from the same `inputs`, or None where work is to be done.

    A shard that lost episodes to a damaged or missing file is made again once that file differs, or with `overwrite`, since a
    repair in the middle of a file shows nowhere else.

    Raises:
        ConflictError: A record is there but was made from other inputs, and `overwrite` is false. The message names both
            fingerprints and the inputs that differ.
    """
    path = manifest_path(storage.join(folder, shard))
    if not storage.exists(path):
        return None
    record = read_manifest(path)
    inputs = with_head_tail_hashes(inputs, recorded_head_tail_hashes(record.inputs))
    wanted = fingerprint(inputs)
    hurt = repairable_files(record)
    if record.fingerprint == wanted and not (hurt and overwrite):
        return record
    if overwrite or (hurt and _without(record.inputs, hurt) == _without(inputs, hurt)):
        return None
    _refuse_older(path, record.inputs, inputs)
    differences = describe_difference(record.inputs, inputs)
    raise ConflictError(
        f"{path} was made with fingerprint {record.fingerprint}, this run has {wanted}; they differ in {differences}. "
        "Choose another output folder, or pass --overwrite to make it anew."
    )


def _refuse_older(path: str, made: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise where an earlier version made a shard, which named or read episodes in another way."""
    before, now = made.get("format"), wanted.get("format")
    if before != now:
        raise ConflictError(
            f"{path} was made by {'an earlier' if (before or 0) < (now or 0) else 'a later'} version of this command (episode "
            f"format {before}, here {now}), which gives its episodes other keys. Choose another --output, or pass "
            "--overwrite to make the data set anew; token shards that were made from it stay readable"
        )


def recorded_head_tail_hashes(inputs: Mapping[str, Any]) -> dict[str, str | None]:
    """Source file -> hash of its ends, of those of which some inputs say it."""
    return {one["file"]: one[HEAD_TAIL_HASH] for one in inputs.get("sources", []) if HEAD_TAIL_HASH in one}


def with_head_tail_hashes(inputs: dict[str, Any], ends: Mapping[str, str | None]) -> dict[str, Any]:
    """`inputs` with the hashes of files' ends that they don't say and `ends` does.

    The plan of a source of many files opens none: what it doesn't say of a file's ends it doesn't hold against a record.
    """
    sources = inputs.get("sources", [])
    if all(HEAD_TAIL_HASH in one or one["file"] not in ends for one in sources):
        return inputs
    known = [
        one if HEAD_TAIL_HASH in one or one["file"] not in ends else {**one, HEAD_TAIL_HASH: ends[one["file"]]}
        for one in sources
    ]
    return {**inputs, "sources": known}


def repairable_files(record: ShardManifest) -> set[str]:
    """The source files to which a shard lost episodes that a repaired or newly fetched copy may have."""
    return {item.source_file for item in record.left_out if item.kind in _REPAIRABLE}


def missing_file_is_back(record: ShardManifest, inputs: dict[str, Any]) -> bool:
    """Whether a file that could not be opened when a shard was made is there by what `inputs` say, as it was then.

    A mount that was away for a while, or a permission, shows nowhere in a file's size or content.
    """
    missing = {item.source_file for item in record.left_out if item.kind == MissingEpisodeError.kind}
    return any(one["file"] in missing and one.get("size") is not None for one in inputs.get("sources", []))


def _without(inputs: dict[str, Any], files: set[str]) -> dict[str, Any]:
    """`inputs` as they would be without these source files."""
    return {**inputs, "sources": [one for one in inputs.get("sources", []) if one["file"] not in files]}


def describe_difference(old: Any, new: Any, prefix: str = "") -> str:
    """The leaves in which two JSON values differ, as `key: old -> new`, at most five of them."""
    leaves = list(_differing_leaves(old, new, prefix))
    shown = "; ".join(f"{key}: {_short(a)} -> {_short(b)}" for key, a, b in leaves[:5])
    return shown + (f"; and {len(leaves) - 5} more" if len(leaves) > 5 else "")


def _differing_leaves(old: Any, new: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        leaves = []
        for key in sorted(old.keys() | new.keys()):
            leaves += _differing_leaves(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return leaves
    if isinstance(old, list) and isinstance(new, list):
        pairs = itertools.zip_longest(old, new)
        return [leaf for place, (a, b) in enumerate(pairs) for leaf in _differing_leaves(a, b, f"{prefix}[{place}]")]
    return [] if old == new else [(prefix or "value", old, new)]


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= 80 else text[:77] + "..."
