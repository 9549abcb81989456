"""From what a user points at to a source: which folder below it holds the data, and of which kind they are.

A kind is told by files that no other has (a spec, labels, names), then known forms that can't be read are refused by name, and
only what is left is taken for a folder of episodes: of one kind alone, unless the user says which.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import storage
from pipeline.common.errors import SourceError
from pipeline.common.json_files import read_json
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm
from pipeline.sources.base import Source
from pipeline.sources.known_formats import ALONE, FORMS, Form, recognise
from pipeline.sources.npz import source as npz
from pipeline.sources.npz.source import NpzSource
from pipeline.sources.side_files import count_by_ending, ending, is_side_file
from pipeline.sources.video import something_something
from pipeline.sources.video import source as video
from pipeline.sources.video.something_something import SomethingSource
from pipeline.sources.video.source import EPISODE_FRAMES, VideoSource

KINDS = ("rlds", "npz", "video", "bair", "robonet", "vp2", "something-something-v2")
_RLDS_FILE = re.compile(r"\.tfrecord|^features\.json$|^dataset_info\.json$")
_VERSION = re.compile(r"^\d+\.\d+\.\d+$")
_SHOWN = 8
_LEVELS = 5  # above a folder that are looked at: a camera's folder lies so deep in a known data set
_HDF5_ENDINGS = (".hdf5", ".h5")
_HDF5_FOLDER = "hdf5"
# What holds more of an episode than pictures, or may; what is of a video's own name is about that video.
_OTHER_DATA = (*_HDF5_ENDINGS, ".npz", ".npy", ".parquet", ".arrow", ".pkl", ".pickle", ".mat", ".tfrecord", ".tfrecords")
_OF_ONE_VIDEO = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".xml", ".yaml", ".yml")
_LEROBOT_INFO = "meta/info.json"


@dataclass(frozen=True)
class _Wanted:
    """How a source is to be opened; see `open_source`."""

    entry: DatasetEntry
    form: FrameForm
    classes: Sequence[str] | None
    episode_frames: int

    def video(self, folder: str) -> Source:
        return VideoSource(folder, self.entry, self.form, self.episode_frames)

    def npz(self, folder: str) -> Source:
        return NpzSource(folder, self.entry, self.form)

    def something(self, folder: str) -> Source:
        return SomethingSource(folder, self.entry, self.form, self.classes)

    # The other kinds need the `ingest` extra, which these do without.

    def rlds(self, folder: str) -> Source:
        from pipeline.sources.rlds.source import SPEC_FILE, RldsSource

        if not storage.exists(storage.join(folder, SPEC_FILE)):
            raise SourceError(f"{folder} holds no {SPEC_FILE}, without which its records can't be read. Fetch it")
        return RldsSource(folder, self.entry, self.form)

    def bair(self, folder: str) -> Source | None:
        from pipeline.sources import bair

        places = (folder, storage.join(folder, bair.FOLDER))
        return next((bair.BairSource(place, self.entry, self.form) for place in places if bair.is_bair(place)), None)

    def hdf5(self, kind: str, folder: str) -> Source:
        from pipeline.sources.hdf5.robonet import RobonetSource
        from pipeline.sources.hdf5.vp2 import Vp2Source

        return {"robonet": RobonetSource, "vp2": Vp2Source}[kind](folder, self.entry, self.form)


def open_source(
    entry: DatasetEntry,
    path: str,
    form: FrameForm,
    classes: Sequence[str] | None = None,
    episode_frames: int = EPISODE_FRAMES,
    kind: str | None = None,
) -> Source:
    """The source at `path`.

    Args:
        entry: Of the data set; says where it lies under a root of data sets.
        path: The folder that holds the files, or such a root.
        form: In which form frames are kept.
        classes: Of Something-Something-v2; see `SomethingSource`.
        episode_frames: A longer video is cut into episodes of so many frames.
        kind: One of `KINDS`; by default what the files tell.

    Raises:
        SourceError: There is no such folder, or nothing in it that can be read, or several kinds of data; the message says
            what is there.
    """
    wanted = _Wanted(entry, form, classes, episode_frames)
    places = [path, storage.join(path, entry.directory, entry.version), storage.join(path, entry.version)]
    versions = [] if entry.version else [place for folder in places[:2] for place in _only_version(folder)]
    folders = list(dict.fromkeys(place.rstrip("/") for place in [*places, *versions]))
    if kind is not None:
        return _open_as(kind, wanted, path, folders)
    for folder in folders:
        if (source := _told_by_own_files(wanted, folder)) is not None:
            return source
    # What has a version is RLDS: under a root of data sets, videos of another one would pass for it.
    for folder in sorted(dict.fromkeys(folders), key=len, reverse=True):
        names = storage.list_files(folder) if entry.version else list(storage.file_sizes(folder, nested=True))
        if (source := _told_by_content(wanted, folder, names)) is not None:
            return source
    raise SourceError(_nothing(entry, path))


def _only_version(folder: str) -> list[str]:
    """The version folder in the folder of a data set, where there is one alone."""
    versions = [name for name in storage.list_folders(folder) if _VERSION.match(name)]
    return [storage.join(folder, versions[0])] if len(versions) == 1 else []


def _open_as(kind: str, wanted: _Wanted, path: str, folders: Sequence[str]) -> Source:
    """A source of a given kind, in the first folder that has its files; the others are passed over."""
    for folder in folders:
        source: Source | None = None
        if kind == SomethingSource.kind:
            source = wanted.something(folder) if something_something.is_something(folder) else None
        elif kind == "bair":
            source = wanted.bair(folder)
        else:
            names = _data(storage.file_sizes(folder, nested=kind in ("video", "robonet", "vp2")))
            if kind == "video" and _videos(names):
                source = wanted.video(folder)
            elif kind == "npz" and _directly(names, npz.ENDINGS):
                source = wanted.npz(folder)
            elif kind == "rlds" and any(map(_RLDS_FILE.search, names)):
                source = wanted.rlds(folder)
            elif kind in ("robonet", "vp2") and (place := _hdf5_place(names)) is not None:
                source = wanted.hdf5(kind, storage.join(folder, place))
        if source is not None:
            return source
    raise SourceError(f"--kind {kind}: {_nothing(wanted.entry, path)}")


def _told_by_own_files(wanted: _Wanted, folder: str) -> Source | None:
    """The source in a folder that has files which no other kind has."""
    if something_something.is_something(folder):
        return wanted.something(folder)
    files = _data(storage.list_files(folder))
    if any(map(_RLDS_FILE.search, files)):
        known = None if any(".tfrecord" in name for name in files) else recognise(files)
        if known is not None:
            raise _refusal(known, folder, files)
        return wanted.rlds(folder)
    return wanted.bair(folder)


def _told_by_content(wanted: _Wanted, folder: str, listed: Sequence[str]) -> Source | None:
    """The source in a folder that holds files of episodes; `listed` are all its files, as paths."""
    names = _data(listed)
    known = (_form_above(folder) if names else None) or recognise(listed)
    if known is not None:
        raise _refusal(known, folder, names)
    place = _hdf5_place(names)
    found = {
        "npz": _directly(names, npz.ENDINGS),
        "hdf5": place is not None,
        "video": bool(_videos(names)),
    }
    kinds = [kind for kind, there in found.items() if there]
    if kinds and (len(kinds) > 1 or (kinds == ["video"] and _beside_videos(names))):
        raise SourceError(_several(folder, names, kinds))
    if found["npz"]:
        return wanted.npz(folder)
    if place is not None:
        from pipeline.sources.hdf5.kinds import hdf5_kind  # needs the `ingest` extra

        inner = storage.join(folder, place)
        return wanted.hdf5(hdf5_kind([storage.join(folder, name) for name in names if _is_hdf5_in(name, place)]), inner)
    return wanted.video(folder) if found["video"] else None


def _data(names: Sequence[str] | dict[str, int]) -> list[str]:
    return [name for name in names if not is_side_file(name)]


def _directly(names: Sequence[str], endings: tuple[str, ...]) -> bool:
    return any("/" not in name and name.endswith(endings) for name in names)


def _videos(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(video.ENDINGS)]


def _is_hdf5_in(name: str, place: str) -> bool:
    return name.rpartition("/")[0] == place and name.endswith(_HDF5_ENDINGS)


def _hdf5_place(names: Sequence[str]) -> str | None:
    """Where HDF5 files lie: directly in the folder (an empty string), or one step below where they are published; else None."""
    return next((place for place in ("", _HDF5_FOLDER) if any(_is_hdf5_in(name, place) for name in names)), None)


def _beside_videos(names: Sequence[str]) -> Counter[str]:
    """Ending -> how many files that may hold more of the videos' episodes than their pictures."""
    stems = {storage.basename(name).rpartition(".")[0] for name in _videos(names)}
    others: Counter[str] = Counter()
    for name in names:
        last = ending(name)
        of_one = last in _OF_ONE_VIDEO and storage.basename(name).rpartition(".")[0] in stems
        if last in _OTHER_DATA or ".tfrecord" in name or of_one:
            others[last] += 1
    return others


def _several(folder: str, names: Sequence[str], kinds: Sequence[str]) -> str:
    counts = _beside_videos(names)
    counts["video files"] = len(_videos(names))
    there = ", ".join(f"{count} {what}" for what, count in counts.most_common() if count)
    options = [kind for kind in kinds if kind != "hdf5"] + (["robonet", "vp2"] if "hdf5" in kinds else [])
    choice = " or ".join(f"--kind {kind}" for kind in options)
    return (
        f"{folder} is no data set of a known form, and holds more than one kind of data: {there}. To take one kind and pass "
        f"over the rest (with whatever actions and texts lie there), pass {choice}; or name a folder that "
        "holds one kind alone with --source"
    )


def _form_above(folder: str) -> Form | None:
    """The form of a known data set that a folder lies in."""
    for above in _ancestors(folder):
        for form in FORMS:
            # A store may forbid to look there.
            with contextlib.suppress(OSError):
                if form.marks and all(storage.exists(storage.join(above, mark)) for mark in form.marks):
                    return form
    return None


def _ancestors(folder: str) -> Iterator[str]:
    scheme, separator, inner = folder.rpartition("://")
    if storage.is_local(folder):
        scheme, separator, inner = "", "", str(Path(inner or folder).resolve())
    parts = inner.rstrip("/").split("/")
    for count in range(1, min(_LEVELS, len(parts) - 1) + 1):
        yield scheme + separator + ("/".join(parts[:-count]) or "/")


def _refusal(form: Form, folder: str, names: Sequence[str]) -> SourceError:
    alone = f". {ALONE}" if _videos(names) and ALONE not in form.remedy else ""
    return SourceError(
        f"{folder} holds or lies in {form.name}{_form_version(form, folder)}, which can't be read yet. {form.remedy}{alone}"
    )


def _form_version(form: Form, folder: str) -> str:
    """What a LeRobot data set says of its own form."""
    if _LEROBOT_INFO in form.marks:
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
        return f"{message}, but {path} is a file. Name the folder that holds it"
    versions = storage.list_folders(storage.join(path, entry.directory))
    if versions:
        return f"{message}; {storage.join(path, entry.directory)} has {', '.join(versions[:_SHOWN])}. Pass one of them"
    there = [f"{name}/" for name in storage.list_folders(path)] + storage.list_files(path)
    message = f"{message}; {path} has {', '.join(there[:_SHOWN]) or 'nothing'}{', ...' if len(there) > _SHOWN else ''}"
    return message if entry.version else message + _inventory(list(storage.file_sizes(path, nested=True)))


def _inventory(names: Sequence[str]) -> str:
    """What files there are at all depths, and what to do with archives."""
    counts: Any = count_by_ending(names).most_common(_SHOWN)
    known = recognise(names, leftover=True)
    told = "; in all " + ", ".join(f"{count} {what}" for what, count in counts) if counts else ""
    return told + (f". There are {known.name}. {known.remedy}" if known is not None else "")
