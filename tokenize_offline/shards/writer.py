"""Publishing what became of one episode shard: rows for training (or plain ones), held-out rows apart, and their records.

The plain shard's record comes last and completes the unit; a process that dies before leaves a unit that is made again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

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

APART = "ingest the episodes of each kind apart, with a --dataset name of their own"


class RowSchemas:
    """What rows of each data set carry, as the first of its shards has it that this process finds or makes."""

    def __init__(self, job: TokenizeJob) -> None:
        self._job = job
        self._first: dict[str, tuple[str, dict[str, Any]]] = {}

    def require_same(self, task: ShardTask, kind: dict[str, Any]) -> None:
        """Refuse rows of another kind than other shards of the data set have; training takes one.

        Args:
            task: Whose rows they are.
            kind: Width of their actions and whether they have rewards, by the names that statistics of records use.

        Raises:
            ShardError: They differ.
        """
        if task.dataset not in self._first:
            self._first[task.dataset] = self._published(task) or (task.source, kind)
        where, known = self._first[task.dataset]
        for name, value in kind.items():
            if known[name] != value:
                raise ShardError(
                    f"{task.source} and {where} can't be of one data set, as {name} is {value} and {known[name]}: {APART}"
                )

    def _published(self, task: ShardTask) -> tuple[str, dict[str, Any]] | None:
        """Name and kind of a shard of the data set that is there already and is to stay."""
        folder = self._job.folder(task)
        for name in [] if self._job.overwrite else storage.list_files(folder):
            if name.endswith(".json") and parse_shard_name(name.removesuffix("json") + "arrow"):
                record = read_manifest(storage.join(folder, name))
                if record.samples:
                    kind = {key: record.statistics.get(key) for key in ("action_dim", "has_reward")}
                    # Records of before say nothing of it.
                    return None if None in kind.values() else (storage.join(folder, record.shard), kind)
        return None


def publish(
    job: TokenizeJob,
    task: ShardTask,
    episodes: list[tuple[int, EpisodeClips]],
    ids: np.ndarray,
    left_out: list[SkippedEpisode],
    errors: Mapping[bool, np.ndarray],
    kinds: RowSchemas,
) -> list[ShardManifest]:
    """Publish the token shards of one episode shard: the held-out one where there is any, then the plain one.

    Args:
        job: What is the same for all shards.
        task: The episode shard.
        episodes: Each with the place of its first clip in `ids`.
        ids: (clips, L).
        left_out: Episodes left out.
        errors: Whether held out -> (clips, T) squared errors of the frames that a sample of the clips decodes to.
        kinds: What rows of the data set carry.

    Returns:
        The records, in order of publication.

    Raises:
        ShardError: Episodes disagree on their actions or rewards, with each other or with other shards.
    """
    has_actions, has_reward = _what_rows_carry(task, [clips for _, clips in episodes])
    kind: dict[str, Any] = {}
    if episodes:
        action = episodes[0][1].action
        kind = {"action_dim": 0 if action is None else action.shape[2], "has_reward": has_reward}
        kinds.require_same(task, kind)
    held_out_rows = sum(len(clips.plans) for _, clips in episodes if clips.held_out)
    paths = {held_out: storage.join(job.folder(task), job.shard(task, held_out)) for held_out in (True, False)}
    for path in paths.values():
        # A record that is being overwritten must not stand beside the new shard for a moment.
        storage.remove(manifest_path(path))
    records = []
    for held_out, path in paths.items():
        if held_out and not held_out_rows:
            storage.remove(path)
            continue
        rows = _token_rows(job, episodes, held_out, ids, has_actions, has_reward)
        info = TokenShardInfo(
            layout=job.layout,
            dataset=task.dataset,
            split=job.split(task, held_out),
            views=job.views(task, held_out),
            action_dim=0 if rows.action is None else rows.action.shape[2],
            action_meaning=episodes[0][1].action_meaning if has_actions else "",
            has_reward=has_reward,
            episode_shard=storage.basename(task.source),
            episode_shard_sha256=task.sha256,
        )
        with storage.staged(path) as staging:
            write_token_shard(staging, info, rows)
            size, sha256 = staging.stat().st_size, sha256_of(staging)
        record = _record(job, task, held_out, rows, size, sha256, errors[held_out])
        seconds = weighted_median(
            (clips.seconds_per_frame, len(clips.plans)) for _, clips in episodes if clips.held_out == held_out
        )
        record = dataclasses.replace(record, statistics={**record.statistics, "seconds_per_frame": seconds, **kind})
        if not held_out:
            statistics = {**record.statistics, "held_out_rows": held_out_rows}
            record = dataclasses.replace(record, left_out=left_out, statistics=statistics)
        write_manifest(job.folder(task), record)
        records.append(record)
    return records


def _what_rows_carry(task: ShardTask, episodes: list[EpisodeClips]) -> tuple[bool, bool]:
    """Whether all episodes have actions of one width, and whether all have rewards."""
    for name in ("action", "reward"):
        widths = {
            "none" if values is None else "x".join(map(str, values.shape[2:])) or "one": clips.key
            for clips in episodes
            for values in [getattr(clips, name)]
        }
        if len(widths) > 1:
            examples = ", ".join(f"{width} in {key}" for width, key in widths.items())
            raise ShardError(f"{task.source}: episodes differ in the width of their {name} ({examples}); {APART}")
    return bool(episodes) and episodes[0].action is not None, bool(episodes) and episodes[0].reward is not None


def _token_rows(
    job: TokenizeJob,
    episodes: list[tuple[int, EpisodeClips]],
    held_out: bool,
    ids: np.ndarray,
    has_actions: bool,
    has_reward: bool,
) -> TokenRows:
    length, width = job.layout.clip_length, job.layout.sequence_length
    if not len(ids):
        ids = np.empty((0, width), np.uint16)
    chosen = [(first, clips) for first, clips in episodes if clips.held_out == held_out]
    plans = [(clips.key, plan) for _, clips in chosen for plan in clips.plans]
    places = [first + place for first, clips in chosen for place in clips.clip_index]
    # An empty slice in front gives a shard without rows the width that its neighbours have.
    actions = [clips.action[:0] for _, clips in episodes[:1] if clips.action is not None]
    actions += [clips.action for _, clips in chosen if clips.action is not None]
    rewards = [np.empty((0, length), np.float32), *(clips.reward for _, clips in chosen if clips.reward is not None)]
    return TokenRows(
        ids=ids[np.array(places, np.int64)],
        episode=[key for key, _ in plans],
        start=np.array([plan.start for _, plan in plans], np.int32),
        stride=np.array([plan.stride for _, plan in plans], np.float32),
        view=np.array([plan.view for _, plan in plans], np.int16),
        action=np.concatenate(actions) if has_actions else None,
        reward=np.concatenate(rewards) if has_reward else None,
    )


def _record(
    job: TokenizeJob, task: ShardTask, held_out: bool, rows: TokenRows, size: int, sha256: str, errors: np.ndarray
) -> ShardManifest:
    inputs = job.inputs(task, held_out)
    counts = code_counts(rows.ids, job.layout)
    statistics: dict[str, Any] = {
        "episodes": len(set(rows.episode)),
        **codebook_statistics(counts, job.layout),
        **reconstruction_statistics(errors, job.layout.context_length),
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
