"""How a source is recognised: one table of the kinds that can be read, in the order in which they are tried.

`pipeline.sources.known_formats` has the table of the formats that can't be read yet; `pipeline.sources.locate` uses both.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.common import storage
from pipeline.common.errors import SourceError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm
from pipeline.sources.base import Source
from pipeline.sources.npz import source as npz
from pipeline.sources.npz.source import NpzSource
from pipeline.sources.side_files import is_side_file
from pipeline.sources.video import something_something
from pipeline.sources.video import source as video
from pipeline.sources.video.something_something import SomethingSource
from pipeline.sources.video.source import VideoSource

RLDS_FILE = re.compile(r"\.tfrecord|^features\.json$|^dataset_info\.json$")
HDF5_ENDINGS = (".hdf5", ".h5")
_HDF5_FOLDER = "hdf5"


@dataclass(frozen=True)
class SourceOptions:
    """Options for opening a source; see `pipeline.sources.locate.open_source`."""

    entry: DatasetEntry
    form: FrameForm
    classes: Sequence[str] | None
    episode_frames: int


class Folder:
    """A folder that may hold a source. It is listed only when a kind needs it.

    Attributes:
        path: A local path or URL.
    """

    def __init__(self, path: str, nested: bool) -> None:
        """See the class; with `nested`, files in all folders below are listed too."""
        self.path = path
        self._nested = nested

    @functools.cached_property
    def all_names(self) -> list[str]:
        """Names of all files, as paths from the folder."""
        return list(storage.file_sizes(self.path, nested=self._nested))

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of all files except side files."""
        return [name for name in self.all_names if not is_side_file(name)]

    @property
    def videos(self) -> list[str]:
        """Names of the video files."""
        return [name for name in self.names if name.lower().endswith(video.ENDINGS)]


@dataclass(frozen=True)
class SourceKind:
    """A kind of source that can be read.

    Attributes:
        name: Name of the kind, as `--kind` takes it.
        proof: The files by which it is recognised, in words.
        find: Returns the folder to open, which is the given one or lies below it; None if the files aren't there.
        open: Opens the folder that `find` returned.
        data: What the files are, if other kinds may have such files too; empty for files that no other kind has.
        nested: Whether its files may lie below the folder.
    """

    name: str
    proof: str
    find: Callable[[Folder], str | None]
    open: Callable[[SourceOptions, str], Source]
    data: str = ""
    nested: bool = False


def is_hdf5_in(name: str, place: str) -> bool:
    """Whether a file is HDF5 and lies directly in the folder `place`."""
    return name.rpartition("/")[0] == place and name.endswith(HDF5_ENDINGS)


def hdf5_place(folder: Folder) -> str | None:
    """Return where HDF5 files lie below `folder`: empty for the folder itself, or `hdf5`; None if there are none."""
    return next((place for place in ("", _HDF5_FOLDER) if any(is_hdf5_in(name, place) for name in folder.names)), None)


def _find_something(folder: Folder) -> str | None:
    return folder.path if something_something.is_something(folder.path) else None


def _find_rlds(folder: Folder) -> str | None:
    return folder.path if any(map(RLDS_FILE.search, folder.names)) else None


def _find_bair(folder: Folder) -> str | None:
    from pipeline.sources import bair

    return next((place for place in (folder.path, storage.join(folder.path, bair.FOLDER)) if bair.is_bair(place)), None)


def _find_npz(folder: Folder) -> str | None:
    return folder.path if any("/" not in name and name.endswith(npz.ENDINGS) for name in folder.names) else None


def _find_videos(folder: Folder) -> str | None:
    return folder.path if folder.videos else None


def _find_hdf5(folder: Folder) -> str | None:
    place = hdf5_place(folder)
    return None if place is None else storage.join(folder.path, place)


def _open_something(options: SourceOptions, folder: str) -> Source:
    return SomethingSource(folder, options.entry, options.form, options.classes)


def _open_npz(options: SourceOptions, folder: str) -> Source:
    return NpzSource(folder, options.entry, options.form)


def _open_video(options: SourceOptions, folder: str) -> Source:
    return VideoSource(folder, options.entry, options.form, options.episode_frames)


# The other kinds are imported when they are opened, because they need the `ingest` extra.


def _open_rlds(options: SourceOptions, folder: str) -> Source:
    from pipeline.sources.rlds.source import SPEC_FILE, RldsSource

    if not storage.exists(storage.join(folder, SPEC_FILE)):
        raise SourceError(f"{folder} holds no {SPEC_FILE}, and its records can't be read without it. Fetch it")
    return RldsSource(folder, options.entry, options.form)


def _open_bair(options: SourceOptions, folder: str) -> Source:
    from pipeline.sources.bair import BairSource

    return BairSource(folder, options.entry, options.form)


def _open_robonet(options: SourceOptions, folder: str) -> Source:
    from pipeline.sources.hdf5.robonet import RobonetSource

    return RobonetSource(folder, options.entry, options.form)


def _open_vp2(options: SourceOptions, folder: str) -> Source:
    from pipeline.sources.hdf5.vp2 import Vp2Source

    return Vp2Source(folder, options.entry, options.form)


SOURCE_KINDS = (
    SourceKind(
        "something-something-v2",
        "labels: `something-something-v2-train.json` or `labels/train.json`",
        _find_something,
        _open_something,
    ),
    SourceKind("rlds", "`features.json`, `dataset_info.json` or `*.tfrecord*`", _find_rlds, _open_rlds),
    SourceKind("bair", "`train/traj_*_to_*.tfrecords`, also below `softmotion30_44k/`", _find_bair, _open_bair),
    # Here `known_formats` are refused; what is left is a folder of episodes of one kind.
    SourceKind("npz", "`*.npz` in the folder itself", _find_npz, _open_npz, "npz"),
    SourceKind("video", "video files at any depth", _find_videos, _open_video, "video", nested=True),
    SourceKind(
        "robonet", "`*.hdf5` in the folder or in `hdf5/`, with a group `env`", _find_hdf5, _open_robonet, "hdf5", nested=True
    ),
    SourceKind("vp2", "`*.hdf5` in the folder or in `hdf5/`, with a group `data`", _find_hdf5, _open_vp2, "hdf5", nested=True),
)
KINDS = tuple(kind.name for kind in SOURCE_KINDS)
BY_NAME = {kind.name: kind for kind in SOURCE_KINDS}
