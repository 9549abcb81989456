"""Runs work units: reads source files and publishes one episode shard with its manifest.

A unit runs in any process, possibly on another machine, and reports only through the output folder: it leaves a manifest on
success, or a `.failed` file with the reason.
"""

import collections
import contextlib
import dataclasses
import json
import logging
from collections.abc import Collection, Sequence
from typing import NamedTuple

from pipeline.common import manifests, storage
from pipeline.common.errors import ProjectError
from pipeline.common.manifests import ShardManifest, SkippedEpisode, find_done
from pipeline.episodes.episode import Episode
from pipeline.episodes.index import ENTRY_COLUMNS
from pipeline.episodes.naming import printable_name
from pipeline.episodes.quality import Quality, measure_frames
from pipeline.episodes.shards import EpisodeShardWriter
from pipeline.ingest.head_tail import head_tail_hash
from pipeline.ingest.plan import WorkUnit
from pipeline.sources import guard
from pipeline.sources.base import BadEpisode, Source, SourceShard

_log = logging.getLogger(__name__)
_FAILED = ".failed"
_LONGEST_REASON = 300
_MOST_REASONS = 100


class UnitJob(NamedTuple):
    """A work unit with its source and the output folder of its shard."""

    unit: WorkUnit
    source: Source
    folder: str


# Jobs that read the same source files; one worker runs them in a single pass.
UnitGroup = Sequence[UnitJob]


def run_jobs(jobs: UnitGroup) -> None:
    """Make the shards of jobs that read the same source files, in a single pass; see `run_unit`.

    If that fails, make each shard separately, so that each job reports its own error.
    """
    if len(jobs) > 1:
        try:
            for job, manifest in zip(jobs, _make_shards(jobs), strict=True):
                manifests.write_manifest(job.folder, manifest)
            return
        except (ProjectError, OSError) as error:
            _log.warning("%s is made camera by camera: %s", jobs[0].unit.shard, error)
    for job in jobs:
        run_unit(*job)


def run_unit(unit: WorkUnit, source: Source, folder: str) -> None:
    """Publish the shard of a unit in `folder`, then its manifest; on failure leave a `.failed` file.

    Storage errors go into that file; a bad input loses only itself. Any other error is a bug and is raised.
    """
    try:
        (manifest,) = _make_shards([UnitJob(unit, source, folder)])
        manifests.write_manifest(folder, manifest)
    except (ProjectError, OSError) as error:
        write_failure(folder, unit.shard, str(error) if isinstance(error, ProjectError) else f"{type(error).__name__}: {error}")


def write_failure(folder: str, shard: str, reason: str) -> None:
    """Write the reason why a shard could not be made to the output folder; see `collect_failures`."""
    try:
        storage.write_bytes(_failure_path(folder, shard), json.dumps(printable_name(reason)).encode())
    except OSError:
        # If nothing can be written, the driver meets the same error and reports it.
        _log.error("%s: %s", shard, reason)


class _ShardBuilder:
    """Collects the episodes of one shard, and builds its manifest."""

    def __init__(self, unit: WorkUnit, writer: EpisodeShardWriter) -> None:
        self._unit = unit
        self._writer = writer
        self._skipped: list[SkippedEpisode] = []
        self._filtered = 0
        self._ignored: collections.Counter[str] = collections.Counter()
        self._actions: collections.Counter[str] = collections.Counter()
        self._qualities: list[Quality] = []

    def add(self, file: SourceShard, position: int, item: Episode | BadEpisode) -> None:
        """Add one record of a file: an episode goes into the shard, a bad one into the manifest's list of skipped episodes."""
        if isinstance(item, Episode):
            item = self._write(file, position, item) or item
        for reason, count in item.ignored.items():
            # Reasons may contain names from the source, so their number is limited.
            known = reason in self._ignored or len(self._ignored) < _MOST_REASONS
            self._ignored[reason if known else "for further reasons"] += count
        if isinstance(item, Episode):
            return
        if item.filtered:
            self._filtered += 1
            self._ignored[item.reason] += 1
        else:
            reason = printable_name(item.reason)[:_LONGEST_REASON]
            key = file.key(position)
            self._skipped.append(SkippedEpisode(printable_name(file.file), position, reason, item.kind, key, item.episodes))

    def _write(self, file: SourceShard, position: int, episode: Episode) -> BadEpisode | None:
        """Write the episode to the shard and return None; return a `BadEpisode` if it can't be used."""
        before = self._writer.size
        try:
            quality, stray_bytes = measure_frames(episode.frames)
            self._writer.add(dataclasses.replace(episode, stray_bytes=True) if stray_bytes else episode)
        except Exception as error:
            # A partially written episode can't be removed from the shard.
            if self._writer.size != before:
                raise
            return guard.as_bad_episode(error, f"{file.file}, record {position}")
        self._qualities.append(quality)
        self._actions[episode.action_meaning] += 1
        return None

    def manifest(self) -> ShardManifest:
        """Return the manifest of the shard; call it after the writer is closed."""
        return ShardManifest(
            shard=self._unit.shard,
            fingerprint=manifests.fingerprint(self._unit.inputs),
            inputs=self._unit.inputs,
            samples=len(self._writer.entries),
            frames=self._writer.frames,
            bytes=self._writer.size,
            sha256=self._writer.sha256,
            left_out=self._skipped,
            entries=[
                {**{name: entry[name] for name in ENTRY_COLUMNS}, **dataclasses.asdict(quality)}
                for entry, quality in zip(self._writer.entries, self._qualities, strict=True)
            ],
            statistics={
                "filtered": self._filtered,
                "passed_over": dict(sorted(self._ignored.items())),
                "actions": dict(sorted(self._actions.items())),
            },
        )


def _make_shards(jobs: UnitGroup) -> list[ShardManifest]:
    """Publish the shards of jobs that read the same source files, and return their manifests."""
    sources = [job.source for job in jobs]
    jobs = _with_hashes(jobs)
    builders = []
    with contextlib.ExitStack() as stack:
        for unit, _, folder in jobs:
            staging = stack.enter_context(storage.staged(storage.join(folder, unit.shard)))
            builders.append(_ShardBuilder(unit, stack.enter_context(EpisodeShardWriter(staging))))
        for file in jobs[0].unit.sources:
            for position, items in guard.read_guarded(file, sources):
                for builder, item in zip(builders, items, strict=True):
                    builder.add(file, position, item)
                # Free the episode before the next one is read: it may be large.
                del items, item
    return [builder.manifest() for builder in builders]


def _with_hashes(jobs: UnitGroup) -> list[UnitJob]:
    """Return the jobs with the `head_tail_hash` of all existing files; plans of sources with many files don't hash them.

    Files are hashed before they are read, so the next run notices a file that changes in between.
    """
    first = jobs[0]
    names = {printable_name(file.file): file.file for file in first.unit.sources}
    sizes = {item["file"]: item["size"] for item in first.unit.inputs["sources"] if item["size"] is not None}
    hashes: dict[str, str | None] = {}
    for name in sizes.keys() - manifests.recorded_head_tail_hashes(first.unit.inputs).keys():
        try:
            hashes[name] = head_tail_hash(storage.join(first.source.folder, names[name]), sizes[name])
        except OSError as error:
            # Reading the file raises this error again and records it as the reason.
            if guard.is_infrastructure_error(error):
                raise
            hashes[name] = None
    return [
        job._replace(unit=dataclasses.replace(job.unit, inputs=manifests.with_head_tail_hashes(job.unit.inputs, hashes)))
        for job in jobs
    ]


def _failure_path(folder: str, shard: str) -> str:
    return storage.join(folder, shard + _FAILED)


def collect_failures(folder: str, shards: Collection[str] | None = None) -> dict[str, str]:
    """Return shard -> why it could not be made, from the `.failed` files in `folder`, and remove these files.

    Args:
        folder: Output folder of the data set.
        shards: Collect only these shards, so that another run in the same folder keeps its own; by default all.
    """
    failures: dict[str, str] = {}
    for name in storage.list_files(folder):
        shard = name.removesuffix(_FAILED)
        if name != shard and (shards is None or shard in shards):
            path = storage.join(folder, name)
            failures[shard] = str(json.loads(storage.read_bytes(path)))
            storage.remove(path)
    return failures


def run_group(group: UnitGroup) -> None:
    """Make the shards of a group, except those that an earlier attempt has published.

    Engines retry work that was lost with a machine, and may run the same group on two machines at once; both publish the same
    bytes.
    """
    run_jobs([job for job in group if not _is_published(job)])


def give_up(group: UnitGroup, reason: str) -> None:
    """Write the reason why a group failed to its output folders."""
    for job in group:
        if not _is_published(job):
            write_failure(job.folder, job.unit.shard, reason)


def _is_published(job: UnitJob) -> bool:
    return find_done(job.folder, job.unit.shard, job.unit.inputs) is not None
