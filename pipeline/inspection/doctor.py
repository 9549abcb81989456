"""The doctor: compares a source of episodes with its catalog entry, before any compute is spent.

It reads the spec, the file names and one episode per data set, so it takes seconds even for a remote source. Damage inside the
files is found by the ingest.
"""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ProjectError, SourceError
from pipeline.config import catalog
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.episode import Episode
from pipeline.episodes.frames import FrameForm
from pipeline.sources.base import Source, SourceShard
from pipeline.sources.guard import read_guarded
from pipeline.sources.locate import open_source
from pipeline.sources.rlds.features import read_features
from pipeline.sources.rlds.source import SPEC_FILE, RldsSource
from pipeline.sources.rlds.spec import action_meaning, camera_paths, episode_spec

_log = logging.getLogger(__name__)
_SHOWN = 5


class SplitCounts(TypedDict):
    """Number of files in a split, and number of episodes (None if unknown)."""

    files: int
    episodes: int | None


@dataclass
class Diagnosis:
    """The doctor's report about one data set.

    Attributes:
        dataset: Name of the data set in the catalog.
        folder: Folder of its files; empty if none were diagnosis.
        kind: Kind of the source.
        splits: Split -> its counts.
        spec: Cameras and actions in the source's spec; empty if it has no spec.
        first_episode: Properties of the first readable episode.
        differences: Differences from the catalog, each with what to do; empty if there are none.
        notes: Differences that need no action, because the ingest doesn't use what differs.
    """

    dataset: str
    folder: str = ""
    kind: str = ""
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    spec: dict[str, str | list[str]] = field(default_factory=dict)
    first_episode: dict[str, Any] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return dataclasses.asdict(self)


def entries_at(path: str, names: Sequence[str] | None = None) -> list[DatasetEntry]:
    """Return the catalog entries of the data sets at `path`.

    Args:
        path: Folder or URL of a version, of a data set, or of a root of data sets.
        names: Names of the data sets, in the catalog or not; by default the names of the folders decide.

    Raises:
        SourceError: The folder doesn't exist, or no folder has the name of a data set in the catalog.
    """
    if not storage.exists(path):
        raise SourceError(f"--doctor {path}: this folder doesn't exist")
    if names:
        return [catalog.datasets().get(name, DatasetEntry(name, name, catalog.DEFAULT_CAMERA)) for name in names]
    folders = set(path.rstrip("/").split("/")[-2:])
    entries = [entry for entry in catalog.datasets().values() if entry.directory in folders]
    if not entries:
        folders = set(storage.list_folders(path))
        entries = [entry for entry in catalog.datasets().values() if entry.directory in folders]
        unknown = sorted(folders - {entry.directory for entry in entries}) if entries else []
        if unknown:
            _log.warning(
                "folders that are not in the catalog are ignored: %s; to check one, pass --dataset", ", ".join(unknown)
            )
    if not entries:
        raise SourceError(f"neither {path} nor a folder in it has the name of a data set in the catalog; pass --dataset NAME")
    return entries


def diagnose(entry: DatasetEntry, path: str) -> Diagnosis:
    """Compare one data set with its catalog entry. Every problem becomes a difference; nothing is raised."""
    diagnosis = Diagnosis(entry.name)
    if entry.name not in catalog.datasets():
        diagnosis.differences.append(
            f"{catalog.describe_unknown_dataset(entry.name)}: pass --rate to ingest it, and --camera if it has several"
        )
    try:
        source = open_source(entry, path, FrameForm("source"))
        diagnosis.folder, diagnosis.kind = source.folder, source.kind
        if isinstance(source, RldsSource):
            _check_version(diagnosis, entry)
            _check_spec(diagnosis, source)
        shards = source.plan()
        _check_files(diagnosis, source, shards)
        _check_first_episode(diagnosis, source, shards)
    except (ProjectError, OSError) as error:
        if str(error) not in diagnosis.differences:
            diagnosis.differences.append(str(error))
    return diagnosis


def _check_version(diagnosis: Diagnosis, entry: DatasetEntry) -> None:
    version = storage.basename(diagnosis.folder)
    if entry.version and version != entry.version:
        diagnosis.differences.append(
            f"this is version {version}, the catalog describes {entry.version}: its cameras and rates may be wrong here"
        )


def _check_spec(diagnosis: Diagnosis, source: Source) -> None:
    path = storage.join(source.folder, SPEC_FILE)
    features = read_features(storage.read_bytes(path), path)
    entry, cameras = source.entry, sorted(camera_paths(features))
    diagnosis.spec = {"cameras": cameras}
    for camera in sorted({*entry.other_cameras, *entry.bgr} - {entry.image_key, *cameras}):
        known = ", ".join(cameras) or "none"
        diagnosis.notes.append(f"the catalog also names a camera {camera!r}, which doesn't exist; the cameras are {known}")
    try:
        spec = episode_spec(features, entry)
    except ConfigError as error:
        diagnosis.differences.append(str(error))
        return
    widths = [None if part.width is None else part.width // part.spans for part in spec.action]
    diagnosis.notes += spec.ignored
    diagnosis.spec |= {"camera": entry.image_key, "action": action_meaning(spec.action, widths)}
    if not spec.action:
        diagnosis.differences.append("no numeric actions: it can only train action-free models")
    for part in spec.action:
        if part.width is not None and part.width % entry.future_steps:
            diagnosis.differences.append(
                f"{part.path} has {part.width} numbers, not a multiple of the catalog's {entry.future_steps} future steps"
            )
    if entry.success_filter and spec.success is None:
        diagnosis.differences.append(
            "no feature `success`, which the catalog uses to filter failed episodes: no episode will be filtered"
        )


def _check_files(diagnosis: Diagnosis, source: Source, shards: Sequence[SourceShard]) -> None:
    if not shards:
        diagnosis.differences.append(f"{source.folder} holds no files of episodes")
    files: collections.Counter[str] = collections.Counter(shard.split for shard in shards)
    for split, count in files.items():
        records = [shard.records for shard in shards if shard.split == split]
        known = [number for number in records if number is not None]
        diagnosis.splits[split] = {"files": count, "episodes": sum(known) if len(known) == count else None}
    sizes = source.file_sizes()
    for problem, names in (
        ("missing", [shard.file for shard in shards if shard.file not in sizes]),
        ("empty", [shard.file for shard in shards if sizes.get(shard.file) == 0 and shard.records != 0]),
    ):
        names = list(dict.fromkeys(names))
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            diagnosis.differences.append(f"{len(names)} files are {problem}: {', '.join(names[:_SHOWN])}{more}. Fetch them")


def _check_first_episode(diagnosis: Diagnosis, source: Source, shards: Sequence[SourceShard]) -> None:
    sizes = source.file_sizes()
    first = next((shard for shard in shards if sizes.get(shard.file)), None)
    if first is None:
        return
    _, (item,) = next(read_guarded(dataclasses.replace(first, take=1), [source]), (0, [None]))
    if isinstance(item, Episode):
        facts = item.facts()
        names = ("num_frames", "height", "width", "rate", "action_dim", "language", "source_file")
        diagnosis.first_episode = {name: facts[name] for name in names}
    elif item is None:
        diagnosis.differences.append(f"{first.file} holds no episode")
    elif not item.filtered:
        diagnosis.differences.append(f"{first.file}, record 0: {item.reason}")
