"""One unit of work: source files in, one published episode shard and its record out.

A unit runs in whatever process the runner chose, perhaps on another machine, and says how it went through the output folder
alone: a record where it went well, a `.failed` file with the reason where it could not be done.
"""

import collections
import contextlib
import dataclasses
import json
import logging
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

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
    """A unit, where its episodes come from, and the folder for its shard."""

    unit: WorkUnit
    source: Source
    folder: str


# Parts that have their source files in common; one worker makes them in one pass.
UnitGroup = Sequence[UnitJob]


def run_jobs(parts: Sequence[UnitJob]) -> None:
    """Make the shards of units that have their source files in common, in one pass over these; see `run_unit`.

    Where that fails, each unit is made by itself, so that each says what is wrong with it.
    """
    if len(parts) > 1:
        try:
            for part, record in zip(parts, _make_shards(parts), strict=True):
                manifests.write_manifest(part.folder, record)
            return
        except (ProjectError, OSError) as error:
            _log.warning("%s is made camera by camera: %s", parts[0].unit.shard, error)
    for part in parts:
        run_unit(*part)


def run_unit(unit: WorkUnit, source: Source, folder: str) -> None:
    """Make the shard of a unit and publish it in `folder`, then its record; or leave a `.failed` file there.

    Errors of storage end up in that file; what is wrong with one input costs that input alone. Any other error is a bug and is
    raised.
    """
    try:
        (record,) = _make_shards([UnitJob(unit, source, folder)])
        manifests.write_manifest(folder, record)
    except (ProjectError, OSError) as error:
        write_failure(folder, unit.shard, str(error) if isinstance(error, ProjectError) else f"{type(error).__name__}: {error}")


def write_failure(folder: str, shard: str, reason: str) -> None:
    """Leave word in the output folder why a shard could not be made; see `collect_failures`."""
    try:
        storage.write_bytes(_failure_path(folder, shard), json.dumps(printable_name(reason)).encode())
    except OSError:
        # Where nothing can be written the driver will meet the same trouble, and can say so.
        _log.error("%s: %s", shard, reason)


class _ShardMaker:
    """Takes what a source has for one shard and, in the end, says what its record says."""

    def __init__(self, unit: WorkUnit, writer: EpisodeShardWriter) -> None:
        self._unit = unit
        self._writer = writer
        self._left_out: list[SkippedEpisode] = []
        self._filtered = 0
        self._ignored: collections.Counter[str] = collections.Counter()
        self._actions: collections.Counter[str] = collections.Counter()
        self._qualities: list[Quality] = []

    def add(self, file: SourceShard, position: int, item: Episode | BadEpisode) -> None:
        """Take one record of a file: the episode into the shard, or the reason why there is none into the record."""
        if isinstance(item, Episode):
            item = self._taken(file, position, item) or item
        for reason, count in item.ignored.items():
            # What a source calls things may be in a reason, and must not fill the record.
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
            self._left_out.append(SkippedEpisode(printable_name(file.file), position, reason, item.kind, key, item.episodes))

    def _taken(self, file: SourceShard, position: int, episode: Episode) -> BadEpisode | None:
        """None once the episode is in the shard, else why it can't be."""
        before = self._writer.size
        try:
            quality, stray_bytes = measure_frames(episode.frames)
            self._writer.add(dataclasses.replace(episode, stray_bytes=True) if stray_bytes else episode)
        except Exception as error:
            # What is half in the shard can't be taken back.
            if self._writer.size != before:
                raise
            return guard.as_bad_episode(error, f"{file.file}, record {position}")
        self._qualities.append(quality)
        self._actions[episode.action_meaning] += 1
        return None

    def record(self) -> ShardManifest:
        return ShardManifest(
            shard=self._unit.shard,
            fingerprint=manifests.fingerprint(self._unit.inputs),
            inputs=self._unit.inputs,
            samples=len(self._writer.entries),
            frames=self._writer.frames,
            bytes=self._writer.size,
            sha256=self._writer.sha256,
            left_out=self._left_out,
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


def _make_shards(parts: Sequence[UnitJob]) -> list[ShardManifest]:
    """Publish the shards of units with the same source files; their records."""
    sources = [part.source for part in parts]
    parts = _with_head_tail_hashes(parts)
    makers = []
    with contextlib.ExitStack() as stack:
        for unit, _, folder in parts:
            staging = stack.enter_context(storage.staged(storage.join(folder, unit.shard)))
            makers.append(_ShardMaker(unit, stack.enter_context(EpisodeShardWriter(staging))))
        for file in parts[0].unit.sources:
            for position, items in guard.read_guarded(file, sources):
                for maker, item in zip(makers, items, strict=True):
                    maker.add(file, position, item)
                # An episode may be large: it is let go before the next one is read.
                del items, item
    return [maker.record() for maker in makers]


def _with_head_tail_hashes(parts: Sequence[UnitJob]) -> list[UnitJob]:
    """Parts whose units say the ends of all files that are there; a plan of many files opens none of them.

    They are read before the files are, so that a file that changes meanwhile is taken for another one by the next run.
    """
    first = parts[0]
    names = {printable_name(file.file): file.file for file in first.unit.sources}
    sizes = {one["file"]: one["size"] for one in first.unit.inputs["sources"] if one["size"] is not None}
    ends: dict[str, str | None] = {}
    for name in sizes.keys() - manifests.recorded_head_tail_hashes(first.unit.inputs).keys():
        try:
            ends[name] = head_tail_hash(storage.join(first.source.folder, names[name]), sizes[name])
        except OSError as error:
            # What reading says of the file becomes the reason why it is left out.
            if guard.is_infrastructure_error(error):
                raise
            ends[name] = None
    return [
        part._replace(unit=dataclasses.replace(part.unit, inputs=manifests.with_head_tail_hashes(part.unit.inputs, ends)))
        for part in parts
    ]


def _failure_path(folder: str, shard: str) -> str:
    return storage.join(folder, shard + _FAILED)


def collect_failures(folder: str, shards: Collection[str] | None = None) -> dict[str, str]:
    """Shard -> why it could not be made, as units left it in `folder`; the files that say so are removed.

    Args:
        folder: Of the data set.
        shards: Only these, so that another run in the same folder finds its own; by default all.
    """
    failures: dict[str, Any] = {}
    for name in storage.list_files(folder):
        shard = name.removesuffix(_FAILED)
        if name != shard and (shards is None or shard in shards):
            path = storage.join(folder, name)
            failures[shard] = str(json.loads(storage.read_bytes(path)))
            storage.remove(path)
    return failures


def run_group(task: UnitGroup) -> None:
    """Make the shards of a task, but for those that an earlier attempt of the same run has published.

    Engines try again what was lost with a machine, and may have two machines do the same at once where they took one for
    lost; both publish the same bytes.
    """
    run_jobs([part for part in task if not _is_published(part)])


def give_up(task: UnitGroup, reason: str) -> None:
    """Leave word in the output folders that a task could not be done."""
    for part in task:
        if not _is_published(part):
            write_failure(part.folder, part.unit.shard, reason)


def _is_published(part: UnitJob) -> bool:
    return find_done(part.folder, part.unit.shard, part.unit.inputs) is not None
