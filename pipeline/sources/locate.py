"""From what a user points at to a source: which folder below it holds the data, and of which kind they are."""

import contextlib
import re
from collections.abc import Sequence

from pipeline import storage
from pipeline.catalog import DatasetEntry
from pipeline.errors import BadEpisodeError, SourceError
from pipeline.frames import FrameForm
from pipeline.sources import npz, something, video
from pipeline.sources.base import Source
from pipeline.sources.npz import NpzSource
from pipeline.sources.something import SomethingSource
from pipeline.sources.video import EPISODE_FRAMES, VideoSource

_RLDS_FILE = re.compile(r"\.tfrecord|^features\.json$|^dataset_info\.json$")
_VERSION = re.compile(r"^\d+\.\d+\.\d+$")
_SHOWN = 8
_DEPTH = 4
_HDF5_FOLDER = "hdf5"


def open_source(
    entry: DatasetEntry,
    path: str,
    form: FrameForm,
    classes: Sequence[str] | None = None,
    episode_frames: int = EPISODE_FRAMES,
) -> Source:
    """The source at `path`.

    Args:
        entry: Of the data set; says where it lies under a root of data sets.
        path: The folder that holds the files, or such a root.
        form: In which form frames are kept.
        classes: Of Something-Something-v2; see `SomethingSource`.
        episode_frames: A longer video is cut into episodes of so many frames.

    Raises:
        SourceError: There is no such folder, or nothing in it that can be read; the message says what is there.
    """
    places = [path, storage.join(path, entry.directory, entry.version), storage.join(path, entry.version)]
    versions = [] if entry.version else [place for folder in places[:2] for place in _only_version(folder)]
    for folder in dict.fromkeys(place.rstrip("/") for place in [*places, *versions]):
        if something.is_something(folder):
            return SomethingSource(folder, entry, form, classes)
        files = storage.list_files(folder)
        if (downstream := _open_downstream(entry, folder, files, form)) is not None:
            return downstream
        if any(_RLDS_FILE.search(name) for name in files):
            # Imported here because it needs the `ingest` extra, which the other kinds do without.
            from pipeline.sources.rlds import SPEC_FILE, RldsSource

            if SPEC_FILE not in files:
                raise SourceError(f"{folder} holds no {SPEC_FILE}, without which its records can't be read. Fetch it")
            return RldsSource(folder, entry, form)
        if any(name.endswith(npz.ENDINGS) for name in files):
            return NpzSource(folder, entry, form)
        if any(name.lower().endswith(video.ENDINGS) for name in files):
            return VideoSource(folder, entry, form, episode_frames)
    # What has a version is RLDS: under a root of data sets, videos of another one would pass for it.
    for folder in _narrowest_first(places) if not entry.version else ():
        if _holds_videos(folder):
            return VideoSource(folder, entry, form, episode_frames)
    raise SourceError(_nothing(entry, path))


def _only_version(folder: str) -> list[str]:
    """The version folder in the folder of a data set, where there is one alone."""
    versions = [name for name in storage.list_folders(folder) if _VERSION.match(name)]
    return [storage.join(folder, versions[0])] if len(versions) == 1 else []


def _open_downstream(entry: DatasetEntry, folder: str, files: Sequence[str], form: FrameForm) -> Source | None:
    """The BAIR, RoboNet or VP2 source in a folder or one step below it, where they are published; None where there is none."""
    # These too need the `ingest` extra.
    from pipeline.sources import bair, hdf5, robonet, vp2

    for place in (folder, storage.join(folder, bair.FOLDER)):
        if bair.is_bair(place):
            return bair.BairSource(place, entry, form)
    for place, names in ((folder, files), (storage.join(folder, _HDF5_FOLDER), None)):
        names = storage.list_files(place) if names is None else names
        paths = [storage.join(place, name) for name in names if name.endswith(hdf5.ENDINGS)]
        if paths:
            kinds = {"env": robonet.RobonetSource, "data": vp2.Vp2Source}
            return kinds[_hdf5_group(paths, tuple(kinds))](place, entry, form)
    return None


def _hdf5_group(paths: Sequence[str], groups: Sequence[str]) -> str:
    """Which of these groups the first file has that has one; some files may be damaged."""
    from pipeline.sources import hdf5_process

    for path in paths[:_SHOWN]:
        with contextlib.suppress(BadEpisodeError):
            found = hdf5_process.call("group", path, groups)
            if found is not None:
                return str(found)
    raise SourceError(
        f"{paths[0]} and the files after it are neither RoboNet's HDF5 (group `env`) nor VP2's (group `data`), or damaged. "
        "Fetch them again, or name their folder with --source"
    )


def _narrowest_first(places: Sequence[str]) -> list[str]:
    return sorted(dict.fromkeys(place.rstrip("/") for place in places), key=len, reverse=True)


def _holds_videos(folder: str, depth: int = _DEPTH) -> bool:
    """Whether there is a video in the folder or in one not too far below it."""
    if any(name.lower().endswith(video.ENDINGS) for name in storage.list_files(folder)):
        return True
    return depth > 0 and any(_holds_videos(storage.join(folder, name), depth - 1) for name in storage.list_folders(folder))


def _nothing(entry: DatasetEntry, path: str) -> str:
    below = storage.join(entry.directory, entry.version) if entry.version else entry.directory
    message = f"no data of {entry.name}: looked in {path} and in {below} below it for TFRecord, HDF5, npz and video files"
    if not storage.exists(path):
        return f"{message}, but {path} doesn't exist"
    versions = storage.list_folders(storage.join(path, entry.directory))
    if versions:
        return f"{message}; {storage.join(path, entry.directory)} has {', '.join(versions[:_SHOWN])}. Pass one of them"
    there = [f"{name}/" for name in storage.list_folders(path)] + storage.list_files(path)
    return f"{message}; {path} has {', '.join(there[:_SHOWN]) or 'nothing'}{', ...' if len(there) > _SHOWN else ''}"
