"""Publishes the token shards of one episode shard: its held-out rows, if any, and its other rows, each with a manifest.

The manifest of the other rows is written last and completes the task. If the process ends before, the task is done again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.common import storage
from pipeline.common.errors import ShardError
from pipeline.common.manifests import (
    ShardManifest,
    SkippedEpisode,
    fingerprint,
    manifest_path,
    read_manifest,
    sha256_of,
    write_manifest,
)
from pipeline.episodes.naming import parse_shard_name
from tokenize_offline.clips.decode import EpisodeClips
from tokenize_offline.shards.codebook_stats import code_counts, codebook_statistics, reconstruction_statistics, weighted_median
from tokenize_offline.shards.token_shards import TokenRows, TokenShardInfo, write_token_shard
from tokenize_offline.tasks import ShardTask, TokenizeJob

INGEST_SEPARATELY = "ingest the episodes of each kind separately, with a --dataset name of their own"


class RowSchema(NamedTuple):
    """The optional columns of token rows, under the names that a manifest's statistics use.

    Attributes:
        action_dim: Width of the actions; 0 without actions.
        has_reward: Whether the rows have rewards.
    """

    action_dim: int
    has_reward: bool


class RowSchemas:
    """Checks that all shards of a data set have the same row schema. The first shard that this process sees sets it."""

    def __init__(self, job: TokenizeJob) -> None:
        self._job = job
        self._first: dict[str, tuple[str, RowSchema]] = {}

    def require_same(self, task: ShardTask, schema: RowSchema) -> None:
        """Check the schema of a task's rows against the other shards of its data set.

        Raises:
            ShardError: They differ, which training does not support.
        """
        if task.dataset not in self._first:
            self._first[task.dataset] = self._published(task) or (task.source, schema)
        where, first = self._first[task.dataset]
        for name, value, first_value in zip(RowSchema._fields, schema, first, strict=True):
            if value != first_value:
                raise ShardError(
                    f"{task.source} and {where} can't be in one data set, because {name} is {value} and {first_value}: "
                    f"{INGEST_SEPARATELY}"
                )

    def _published(self, task: ShardTask) -> tuple[str, RowSchema] | None:
        """Path and schema of a published shard of the data set that this run does not replace."""
        folder = self._job.folder(task)
        for name in [] if self._job.overwrite else storage.list_files(folder):
            if name.endswith(".json") and parse_shard_name(name.removesuffix("json") + "arrow"):
                manifest = read_manifest(storage.join(folder, name))
                if manifest.samples:
                    # Manifests of early releases have no schema.
                    known = all(key in manifest.statistics for key in RowSchema._fields)
                    schema = RowSchema(*(manifest.statistics[key] for key in RowSchema._fields)) if known else None
                    return None if schema is None else (storage.join(folder, manifest.shard), schema)
        return None


@dataclass(frozen=True)
class TokenizedEpisodes:
    """The tokenized episodes of one episode shard.

    Attributes:
        episodes: (index of the episode's first clip in `ids`, clips of the episode).
        ids: (clips, L).
        left_out: Episodes that were left out.
        errors: Held out or not -> (clips of the reconstruction sample, T) mean squared errors.
    """

    episodes: Sequence[tuple[int, EpisodeClips]]
    ids: np.ndarray
    left_out: list[SkippedEpisode]
    errors: Mapping[bool, np.ndarray]

    def select(self, held_out: bool) -> list[tuple[int, EpisodeClips]]:
        """The episodes that are held out, or those that are not."""
        return [(first, clips) for first, clips in self.episodes if clips.held_out == held_out]


def publish(job: TokenizeJob, task: ShardTask, content: TokenizedEpisodes, schemas: RowSchemas) -> list[ShardManifest]:
    """Publish the token shards of an episode shard: the held-out rows first, if there are any.

    Returns:
        The manifests, in order of publication.

    Raises:
        ShardError: Actions or rewards differ between the episodes, or from other shards of the data set.
    """
    schema = _row_schema(task, [clips for _, clips in content.episodes])
    if schema is not None:
        schemas.require_same(task, schema)
    held_out_rows = sum(len(clips.plans) for _, clips in content.select(held_out=True))
    paths = {held_out: storage.join(job.folder(task), job.shard(task, held_out)) for held_out in (True, False)}
    for path in paths.values():
        # An old manifest must never describe a new shard.
        storage.remove(manifest_path(path))
    if not held_out_rows:
        storage.remove(paths.pop(True))
    manifests = []
    for held_out, path in paths.items():
        manifest = _publish_rows(path, job, task, content, schema, held_out)
        if not held_out:
            statistics = {**manifest.statistics, "held_out_rows": held_out_rows}
            manifest = dataclasses.replace(manifest, left_out=content.left_out, statistics=statistics)
        write_manifest(job.folder(task), manifest)
        manifests.append(manifest)
    return manifests


def _publish_rows(
    path: str, job: TokenizeJob, task: ShardTask, content: TokenizedEpisodes, schema: RowSchema | None, held_out: bool
) -> ShardManifest:
    """Publish one token shard; returns its manifest, which is not written yet."""
    episodes = content.select(held_out)
    rows = _token_rows(job, episodes, content)
    info = TokenShardInfo(
        layout=job.layout,
        dataset=task.dataset,
        split=job.split(task, held_out),
        views=job.views(task, held_out),
        action_dim=0 if rows.action is None else rows.action.shape[2],
        action_meaning="" if rows.action is None else content.episodes[0][1].action_meaning,
        has_reward=rows.reward is not None,
        episode_shard=storage.basename(task.source),
        episode_shard_sha256=task.sha256,
    )
    with storage.staged(path) as staging:
        write_token_shard(staging, info, rows)
        size, sha256 = staging.stat().st_size, sha256_of(staging)
    inputs = job.inputs(task, held_out)
    statistics: dict[str, Any] = {
        "episodes": len(set(rows.episode)),
        **codebook_statistics(code_counts(rows.ids, job.layout), job.layout),
        **reconstruction_statistics(content.errors[held_out], job.layout.context_length),
        "seconds_per_frame": weighted_median((clips.seconds_per_frame, len(clips.plans)) for _, clips in episodes),
        **({} if schema is None else schema._asdict()),
    }
    return ShardManifest(
        shard=job.shard(task, held_out),
        fingerprint=fingerprint(inputs),
        inputs=inputs,
        samples=len(rows.episode),
        frames=len(rows.episode) * job.layout.clip_length,
        bytes=size,
        sha256=sha256,
        statistics=statistics,
    )


def _row_schema(task: ShardTask, episodes: list[EpisodeClips]) -> RowSchema | None:
    """The row schema of the episodes, which must all have the same; None without episodes."""
    for name in ("action", "reward"):
        widths = {
            "none" if values is None else "x".join(map(str, values.shape[2:])) or "one": clips.key
            for clips in episodes
            for values in [getattr(clips, name)]
        }
        if len(widths) > 1:
            examples = ", ".join(f"{width} in {key}" for width, key in widths.items())
            raise ShardError(f"{task.source}: episodes differ in the width of their {name} ({examples}); {INGEST_SEPARATELY}")
    if not episodes:
        return None
    action = episodes[0].action
    return RowSchema(0 if action is None else action.shape[2], episodes[0].reward is not None)


def _token_rows(job: TokenizeJob, chosen: list[tuple[int, EpisodeClips]], content: TokenizedEpisodes) -> TokenRows:
    """The rows of the `chosen` episodes of `content`."""
    ids = content.ids if len(content.ids) else np.empty((0, job.layout.sequence_length), np.uint16)
    plans = [(clips.key, plan) for _, clips in chosen for plan in clips.plans]
    indices = [first + index for first, clips in chosen for index in clips.clip_index]
    # An empty slice of any episode gives a shard without rows the columns of its data set.
    examples = [clips for _, clips in content.episodes[:1]]
    actions = [clips.action[:0] for clips in examples if clips.action is not None]
    actions += [clips.action for _, clips in chosen if clips.action is not None]
    rewards = [clips.reward[:0] for clips in examples if clips.reward is not None]
    rewards += [clips.reward for _, clips in chosen if clips.reward is not None]
    return TokenRows(
        ids=ids[np.array(indices, np.int64)],
        episode=[key for key, _ in plans],
        start=np.array([plan.start for _, plan in plans], np.int32),
        stride=np.array([plan.stride for _, plan in plans], np.float32),
        view=np.array([plan.view for _, plan in plans], np.int16),
        action=np.concatenate(actions) if actions else None,
        reward=np.concatenate(rewards) if rewards else None,
    )
