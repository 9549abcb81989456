"""Finds the source at a path: which folder holds the data, and of which kind the data are.

Kinds with files that no other kind has are tried first. Then known formats that can't be read are refused by name. What is left
is a folder of episodes of one kind, unless the user names the kind. The kinds and their files: `pipeline.sources.kinds`.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pipeline.common import storage
from pipeline.common.errors import SourceError
from pipeline.common.json_files import read_json
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm
from pipeline.sources.base import Source
from pipeline.sources.kinds import (
    BY_NAME,
    HDF5_ENDINGS,
    SOURCE_KINDS,
    Folder,
    SourceKind,
    SourceOptions,
    hdf5_place,
    is_hdf5_in,
)
from pipeline.sources.known_formats import KNOWN_FORMATS, VIDEOS_ONLY, KnownFormat, recognise
from pipeline.sources.side_files import count_by_ending, ending
from pipeline.sources.video.source import EPISODE_FRAMES

_VERSION = re.compile(r"^\d+\.\d+\.\d+$")
_SHOWN = 8
_LEVELS = 5  # number of parent folders to check: a camera's folder may lie that deep in a known data set
# Endings of files that hold, or may hold, more than the pictures of episodes.
_OTHER_DATA = (*HDF5_ENDINGS, ".npz", ".npy", ".parquet", ".arrow", ".pkl", ".pickle", ".mat", ".tfrecord", ".tfrecords")
# Endings of files that describe a video if they have its name.
_OF_ONE_VIDEO = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".xml", ".yaml", ".yml")
_LEROBOT_INFO = "meta/info.json"


def open_source(
    entry: DatasetEntry,
    path: str,
    form: FrameForm,
    classes: Sequence[str] | None = None,
    episode_frames: int = EPISODE_FRAMES,
    kind: str | None = None,
) -> Source:
    """Open the source at `path`.

    Args:
        entry: Catalog entry of the data set; says where it lies below a root of data sets.
        path: The folder with the files, or a root of data sets.
        form: The form in which frames are stored.
        classes: Classes of Something-Something-v2; see `SomethingSource`.
        episode_frames: Longer videos are cut into episodes of this many frames.
        kind: Name of a kind in `pipeline.sources.kinds`; by default the files decide.

    Raises:
        SourceError: The folder doesn't exist, or holds nothing readable, or several kinds of data; the message says what it
            holds.
    """
    options = SourceOptions(entry, form, classes, episode_frames)
    places = [path, storage.join(path, entry.directory, entry.version), storage.join(path, entry.version)]
    versions = [] if entry.version else [place for folder in places[:2] for place in _only_version(folder)]
    folders = list(dict.fromkeys(place.rstrip("/") for place in [*places, *versions]))
    if kind is not None:
        return _open_as(BY_NAME[kind], options, path, folders)
    for folder in folders:
        if (source := _open_by_own_files(options, folder)) is not None:
            return source
    # Data sets with a version are RLDS: nested videos below a root would belong to another data set.
    for folder in sorted(dict.fromkeys(folders), key=len, reverse=True):
        if (source := _open_by_content(options, Folder(folder, nested=not entry.version))) is not None:
            return source
    raise SourceError(_nothing(entry, path))


def _only_version(folder: str) -> list[str]:
    """Return the version folder of a data set, if there is exactly one."""
    versions = [name for name in storage.list_folders(folder) if _VERSION.match(name)]
    return [storage.join(folder, versions[0])] if len(versions) == 1 else []


def _open_as(kind: SourceKind, options: SourceOptions, path: str, folders: Sequence[str]) -> Source:
    """Open a source of a given kind, in the first folder that has its files."""
    for folder in folders:
        place = kind.find(Folder(folder, kind.nested))
        if place is not None:
            return kind.open(options, place)
    raise SourceError(f"--kind {kind.name} needs {kind.proof}; {_nothing(options.entry, path)}")


def _open_by_own_files(options: SourceOptions, path: str) -> Source | None:
    """Open the source in a folder with files that no other kind has."""
    folder = Folder(path, nested=False)
    for kind in SOURCE_KINDS:
        if not kind.data and (place := kind.find(folder)) is not None:
            # Other formats have a `dataset_info.json` too.
            if kind.name == "rlds" and not any(".tfrecord" in name for name in folder.names):
                known = recognise(folder.names)
                if known is not None:
                    raise _refusal(known, folder)
            return kind.open(options, place)
    return None


def _open_by_content(options: SourceOptions, folder: Folder) -> Source | None:
    """Open the source in a folder of episodes."""
    known = (_format_above(folder.path) if folder.names else None) or recognise(folder.all_names)
    if known is not None:
        raise _refusal(known, folder)
    found = {kind: place for kind in SOURCE_KINDS if kind.data and (place := kind.find(folder)) is not None}
    data = {kind.data for kind in found}
    if len(data) > 1 or (data == {"video"} and _beside_videos(folder)):
        raise SourceError(_several(folder, [kind.name for kind in found]))
    for kind, place in found.items():
        chosen = BY_NAME[_hdf5_kind(folder)] if kind.data == "hdf5" else kind
        return chosen.open(options, place)
    return None


def _hdf5_kind(folder: Folder) -> str:
    from pipeline.sources.hdf5.kinds import hdf5_kind  # needs the `ingest` extra

    place = hdf5_place(folder) or ""
    return hdf5_kind([storage.join(folder.path, name) for name in folder.names if is_hdf5_in(name, place)])


def _beside_videos(folder: Folder) -> Counter[str]:
    """Return ending -> number of files that may hold more of the videos' episodes than their pictures."""
    stems = {storage.basename(name).rpartition(".")[0] for name in folder.videos}
    others: Counter[str] = Counter()
    for name in folder.names:
        last = ending(name)
        of_one_video = last in _OF_ONE_VIDEO and storage.basename(name).rpartition(".")[0] in stems
        if last in _OTHER_DATA or ".tfrecord" in name or of_one_video:
            others[last] += 1
    return others


def _several(folder: Folder, kinds: Collection[str]) -> str:
    counts = _beside_videos(folder)
    counts["video files"] = len(folder.videos)
    listed = ", ".join(f"{count} {what}" for what, count in counts.most_common() if count)
    choice = " or ".join(f"--kind {kind}" for kind in kinds)
    return (
        f"{folder.path} is not a data set of a known format, and holds more than one kind of data: {listed}. To take one kind "
        f"and ignore the rest (with its actions and texts), pass {choice}; or pass a folder with only one kind to --source"
    )


def _format_above(folder: str) -> KnownFormat | None:
    """Return the format of the known data set that a folder lies in."""
    for above in _ancestors(folder):
        for known in KNOWN_FORMATS:
            # A store may deny access to parent folders.
            with contextlib.suppress(OSError):
                if known.top_files and all(storage.exists(storage.join(above, name)) for name in known.top_files):
                    return known
    return None


def _ancestors(folder: str) -> Iterator[str]:
    scheme, separator, inner = folder.rpartition("://")
    if storage.is_local(folder):
        scheme, separator, inner = "", "", str(Path(inner or folder).resolve())
    parts = inner.rstrip("/").split("/")
    for count in range(1, min(_LEVELS, len(parts) - 1) + 1):
        yield scheme + separator + ("/".join(parts[:-count]) or "/")


def _refusal(known: KnownFormat, folder: Folder) -> SourceError:
    videos_only = f". {VIDEOS_ONLY}" if folder.videos and VIDEOS_ONLY not in known.remedy else ""
    version = _lerobot_version(known, folder.path)
    return SourceError(
        f"{folder.path} holds or lies in {known.name}{version}, which can't be read yet. {known.remedy}{videos_only}"
    )


def _lerobot_version(known: KnownFormat, folder: str) -> str:
    """Return the version that a LeRobot data set states, in brackets; empty for other formats."""
    if _LEROBOT_INFO in known.top_files:
        for place in (folder, *_ancestors(folder)):
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                version = str(read_json(storage.join(place, _LEROBOT_INFO)).get("codebase_version", ""))
                return f" ({version[:20]})" if version else ""
    return ""


def _nothing(entry: DatasetEntry, path: str) -> str:
    below = storage.join(entry.directory, entry.version) if entry.version else entry.directory
    message = (
        f"no data of {entry.name}: looked in {path} and in {below} below it for TFRecord, HDF5 and npz files"
        f"{'' if entry.version else ', and for videos at any depth'}"
    )
    if not storage.exists(path):
        return f"{message}, but {path} doesn't exist"
    if storage.is_local(path) and storage.local_path(path).is_file():
        return f"{message}, but {path} is a file. Pass the folder that holds it"
    versions = storage.list_folders(storage.join(path, entry.directory))
    if versions:
        return f"{message}; {storage.join(path, entry.directory)} has {', '.join(versions[:_SHOWN])}. Pass one of them"
    found = [f"{name}/" for name in storage.list_folders(path)] + storage.list_files(path)
    message = f"{message}; {path} has {', '.join(found[:_SHOWN]) or 'nothing'}{', ...' if len(found) > _SHOWN else ''}"
    return message if entry.version else message + _inventory(list(storage.file_sizes(path, nested=True)))


def _inventory(names: Sequence[str]) -> str:
    """Return the number of files of each ending at any depth, and advice about archives."""
    counts = count_by_ending(names).most_common(_SHOWN)
    known = recognise(names, leftover=True)
    listed = "; in total " + ", ".join(f"{count} {what}" for what, count in counts) if counts else ""
    return listed + (f". There are {known.name}. {known.remedy}" if known is not None else "")
