"""The doctor: what a source of episodes is, and where it differs from what the catalog says of it, before compute is spent.

It reads the spec, the names of the files and one episode a data set, so it takes seconds even where the source is remote;
damage inside the files is for the ingest to find.
"""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Diagnosis:
    """What was found of one data set.

    Attributes:
        dataset: Its name in the catalog.
        folder: Where its files lie; empty where none were found.
        kind: Of the source.
        splits: Split -> files, and episodes (None where nobody says).
        spec: Cameras and actions, as the source's spec has them; empty where it has none.
        first_episode: Facts of the first episode that can be read.
        differences: In words, each with what to do; empty where all agrees.
        notes: What differs and ingest does not use, so that nothing needs to be done.
    """

    dataset: str
    folder: str = ""
    kind: str = ""
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    first_episode: dict[str, Any] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """In a form that JSON holds."""
        return dataclasses.asdict(self)


def entries_at(path: str, names: Sequence[str] | None = None) -> list[DatasetEntry]:
    """The catalog's entries that a path can be the source of: a version folder, a data set's folder, or a root of data sets.

    Args:
        path: A folder or URL.
        names: Only these, of the catalog or not; by default, what the names of folders say.

    Raises:
        SourceError: There is no such folder, or no folder there is called like a data set of the catalog.
    """
    if not storage.exists(path):
        raise SourceError(f"--doctor {path}: there is no such folder")
    if names:
        return [catalog.datasets().get(name, DatasetEntry(name, name, catalog.DEFAULT_CAMERA)) for name in names]
    called = set(path.rstrip("/").split("/")[-2:])
    found = [entry for entry in catalog.datasets().values() if entry.directory in called]
    if not found:
        called = set(storage.list_folders(path))
        found = [entry for entry in catalog.datasets().values() if entry.directory in called]
        others = sorted(called - {entry.directory for entry in found}) if found else []
        if others:
            _log.warning(
                "the catalog knows no data set in a folder called %s: not looked at; name it with --dataset where it is one",
                " or ".join(others),
            )
    if not found:
        raise SourceError(f"neither {path} nor a folder in it is called like a data set of the catalog; pass --dataset NAME")
    return found


def diagnose(entry: DatasetEntry, path: str) -> Diagnosis:
    """Hold one data set against its entry in the catalog. Whatever is wrong with it becomes a difference; nothing is raised."""
    found = Diagnosis(entry.name)
    if entry.name not in catalog.datasets():
        found.differences.append(
            f"{catalog.describe_unknown_dataset(entry.name)}: pass --rate to ingest it, and --camera where it has several"
        )
    try:
        source = open_source(entry, path, FrameForm("source"))
        found.folder, found.kind = source.folder, source.kind
        if isinstance(source, RldsSource):
            _check_version(found, entry)
            _check_spec(found, source)
        shards = source.plan()
        _check_files(found, source, shards)
        _check_first_episode(found, source, shards)
    except (ProjectError, OSError) as error:
        if str(error) not in found.differences:
            found.differences.append(str(error))
    return found


def _check_version(found: Diagnosis, entry: DatasetEntry) -> None:
    version = storage.basename(found.folder)
    if entry.version and version != entry.version:
        found.differences.append(
            f"this is version {version}, the catalog knows {entry.version}: what it says of the cameras and rates may not hold"
        )


def _check_spec(found: Diagnosis, source: Source) -> None:
    path = storage.join(source.folder, SPEC_FILE)
    features = read_features(storage.read_bytes(path), path)
    entry, cameras = source.entry, sorted(camera_paths(features))
    found.spec = {"cameras": cameras}
    for camera in sorted({*entry.other_cameras, *entry.bgr} - {entry.image_key, *cameras}):
        found.notes.append(f"no camera {camera!r}, which the catalog names too; there are {', '.join(cameras) or 'none'}")
    try:
        spec = episode_spec(features, entry)
    except ConfigError as error:
        found.differences.append(str(error))
        return
    widths = [None if part.width is None else part.width // part.spans for part in spec.action]
    found.notes += spec.ignored
    found.spec |= {"camera": entry.image_key, "action": action_meaning(spec.action, widths)}
    if not spec.action:
        found.differences.append("no numeric actions: only action-free models can be trained on it")
    for part in spec.action:
        if part.width is not None and part.width % entry.future_steps:
            found.differences.append(
                f"{part.path} has {part.width} numbers, no multiple of the catalog's {entry.future_steps} future steps"
            )
    if entry.success_filter and spec.success is None:
        found.differences.append(
            "no feature `success`, by which the catalog passes over failed episodes: none will be passed over"
        )


def _check_files(found: Diagnosis, source: Source, shards: Sequence[SourceShard]) -> None:
    if not shards:
        found.differences.append(f"{source.folder} holds no files of episodes")
    files: collections.Counter[str] = collections.Counter(shard.split for shard in shards)
    for split, count in files.items():
        records = [shard.records for shard in shards if shard.split == split]
        known = [number for number in records if number is not None]
        found.splits[split] = {"files": count, "episodes": sum(known) if len(known) == count else None}
    sizes = source.file_sizes()
    for what, names in (
        ("missing", [shard.file for shard in shards if shard.file not in sizes]),
        ("empty", [shard.file for shard in shards if sizes.get(shard.file) == 0 and shard.records != 0]),
    ):
        names = list(dict.fromkeys(names))
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            found.differences.append(f"{len(names)} files are {what}: {', '.join(names[:_SHOWN])}{more}. Fetch them")


def _check_first_episode(found: Diagnosis, source: Source, shards: Sequence[SourceShard]) -> None:
    sizes = source.file_sizes()
    first = next((shard for shard in shards if sizes.get(shard.file)), None)
    if first is None:
        return
    _, (item,) = next(read_guarded(dataclasses.replace(first, take=1), [source]), (0, [None]))
    if isinstance(item, Episode):
        facts = item.facts()
        names = ("num_frames", "height", "width", "rate", "action_dim", "language", "source_file")
        found.first_episode = {name: facts[name] for name in names}
    elif item is None:
        found.differences.append(f"{first.file} holds no episode")
    elif not item.filtered:
        found.differences.append(f"{first.file}, record 0: {item.reason}")
