"""Shard manifests: a small JSON file next to each shard, written last. A shard exists if its manifest does.

Episode shards and token shards share this protocol. A manifest has a fingerprint of everything that decides the shard's bytes,
and these inputs themselves, so that an error can name the difference.
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

HEAD_TAIL_HASH = "ends_sha256"  # key of `inputs`: hash of the first and last bytes of a source file
_REPAIRABLE = (DamagedEpisodeError.kind, MissingEpisodeError.kind)


@dataclass(frozen=True)
class SkippedEpisode:
    """A skipped episode: its place in the source and the reason.

    Attributes:
        source_file: Name of the source file, relative to the source folder.
        source_record: Position in that file, from 0.
        reason: What is wrong with the episode.
        kind: `missing`, `damaged` or `unusable`; see `BadEpisodeError`.
        key: The key that the episode would have; empty if unknown.
        episodes: Estimated number of lost episodes; less than 1 for a part of an episode.
    """

    source_file: str
    source_record: int
    reason: str
    kind: str = BadEpisodeError.kind
    key: str = ""
    episodes: float = 1


@dataclass(frozen=True)
class ShardManifest:
    """Facts about a published shard.

    Attributes:
        shard: File name of the shard, such as `train-000003.tar`.
        fingerprint: Hash of `inputs`.
        inputs: Everything that decides the shard's bytes, ready for JSON.
        samples: Number of episodes in an episode shard, of rows in a token shard.
        frames: Number of frames in all samples.
        bytes: Size of the shard file.
        sha256: SHA-256 of the shard file, in hex.
        left_out: Skipped episodes.
        entries: One mapping per sample, for the index; empty for token shards.
        statistics: Other measured facts; never speeds, since the same work must give the same manifest.
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
    """Returns JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(inputs: dict[str, Any]) -> str:
    """Returns the first 16 hex digits of the SHA-256 of the canonical JSON of `inputs`."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a local file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_path(shard_path: str) -> str:
    """Returns the path of a shard's manifest: the shard's path with the ending `.json`."""
    return shard_path.rsplit(".", 1)[0] + ".json"


def write_manifest(folder: str, manifest: ShardManifest) -> None:
    """Publishes a manifest in `folder`. Call it after the shard is published, never before."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    storage.write_bytes(manifest_path(storage.join(folder, manifest.shard)), text.encode() + b"\n")


def read_manifest(path: str) -> ShardManifest:
    """Reads a manifest.

    Raises:
        ShardError: The file is not a manifest.
    """
    try:
        raw = read_json(path)
        raw["left_out"] = [SkippedEpisode(**item) for item in raw["left_out"]]
        return ShardManifest(**raw)
    except (ValueError, TypeError, KeyError) as error:
        raise ShardError(f"{path} is not a shard manifest ({error}); delete it and run the command again") from error


def find_done(folder: str, shard: str, inputs: dict[str, Any], overwrite: bool = False) -> ShardManifest | None:
    """Returns the manifest of a finished shard made from the same `inputs`; None if the shard must be made.

    A shard that lost episodes to a damaged or missing file is made again if that file has changed, or with `overwrite`, because
    a repair in the middle of a file changes nothing that `inputs` hold.

    Raises:
        ConflictError: The shard was made from other inputs, and `overwrite` is False. The message names both fingerprints and
            the
            inputs that differ.
    """
    path = manifest_path(storage.join(folder, shard))
    if not storage.exists(path):
        return None
    manifest = read_manifest(path)
    inputs = with_head_tail_hashes(inputs, recorded_head_tail_hashes(manifest.inputs))
    current = fingerprint(inputs)
    repairable = repairable_files(manifest)
    if manifest.fingerprint == current and not (repairable and overwrite):
        return manifest
    if overwrite or (repairable and _without(manifest.inputs, repairable) == _without(inputs, repairable)):
        return None
    _require_same_version(path, manifest.inputs, inputs)
    differences = describe_difference(manifest.inputs, inputs)
    raise ConflictError(
        f"{path} was made with fingerprint {manifest.fingerprint}, this run has {current}; they differ in {differences}. "
        "Choose another output folder, or pass --overwrite to make it again."
    )


def _require_same_version(path: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises an error if another version, which names or reads episodes differently, made a shard."""
    old_format, new_format = old.get("format"), new.get("format")
    if old_format != new_format:
        version = "an earlier" if (old_format or 0) < (new_format or 0) else "a later"
        raise ConflictError(
            f"{path} was made by {version} version of this command (episode format {old_format}, here {new_format}), which "
            "gives its episodes other keys. Choose another --output, or pass --overwrite to make the data set again; token "
            "shards made from it stay readable"
        )


def recorded_head_tail_hashes(inputs: Mapping[str, Any]) -> dict[str, str | None]:
    """Returns source file -> head-tail hash, for the files whose hash `inputs` hold."""
    return {source["file"]: source[HEAD_TAIL_HASH] for source in inputs.get("sources", []) if HEAD_TAIL_HASH in source}


def with_head_tail_hashes(inputs: dict[str, Any], hashes: Mapping[str, str | None]) -> dict[str, Any]:
    """Returns `inputs` with the head-tail hashes that only `hashes` has.

    The plan of a source with many files opens none of them, so it lacks hashes; those of the manifest then count as equal.
    """
    sources = inputs.get("sources", [])
    if all(HEAD_TAIL_HASH in one or one["file"] not in hashes for one in sources):
        return inputs
    known = [
        one if HEAD_TAIL_HASH in one or one["file"] not in hashes else {**one, HEAD_TAIL_HASH: hashes[one["file"]]}
        for one in sources
    ]
    return {**inputs, "sources": known}


def repairable_files(manifest: ShardManifest) -> set[str]:
    """Returns the source files whose episodes were skipped as damaged or missing; a new copy may have them."""
    return {item.source_file for item in manifest.left_out if item.kind in _REPAIRABLE}


def missing_file_is_back(manifest: ShardManifest, inputs: dict[str, Any]) -> bool:
    """Whether a file that was missing when the shard was made exists according to `inputs`.

    A mount that was gone for a while, or a permission, leaves no trace in a file's size or content.
    """
    missing = {item.source_file for item in manifest.left_out if item.kind == MissingEpisodeError.kind}
    return any(source["file"] in missing and source.get("size") is not None for source in inputs.get("sources", []))


def _without(inputs: dict[str, Any], files: set[str]) -> dict[str, Any]:
    """Returns `inputs` without these source files."""
    return {**inputs, "sources": [source for source in inputs.get("sources", []) if source["file"] not in files]}


def describe_difference(old: Any, new: Any, prefix: str = "") -> str:
    """Lists the leaves in which two JSON values differ, as `key: old -> new`, at most five of them."""
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
