"""Published formats that can't be read yet: one table, with the file names by which each format is recognised.

These formats are recognised before a folder of videos is assumed, because their videos alone are not the data set: one video
holds several episodes, cameras are mixed, and actions and texts lie in other files. File names decide, so no file is opened.
"""

import collections
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pipeline.sources.side_files import ending, is_side_file

VIDEOS_ONLY = (
    "To take only its videos, without actions and texts, pass the folder of one camera's videos to --source, and --kind video"
)
_ZARR_FILE = re.compile(r"(^|/)\.z(array|group|metadata)$")
_CONVERT = "Convert it to RLDS, to npz episodes or to videos first"


@dataclass(frozen=True)
class KnownFormat:
    """A published format that can't be read.

    Attributes:
        name: The common name of the format.
        matches: Whether file names, as paths from one folder, belong to such a data set.
        remedy: What the user can do with it.
        top_files: Files and folders that all lie in its top folder, to recognise it from a folder inside.
        leftover: Whether such files often lie next to other data made from them; then they count only if nothing else is found.
    """

    name: str
    matches: Callable[[Collection[str]], bool]
    remedy: str
    top_files: tuple[str, ...] = ()
    leftover: bool = False


def _any(pattern: str) -> Callable[[Collection[str]], bool]:
    """Return a test whether any file name matches `pattern`."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda names: any(map(compiled.search, names))


def _all(*patterns: str) -> Callable[[Collection[str]], bool]:
    tests = [_any(pattern) for pattern in patterns]
    return lambda names: all(test(names) for test in tests)


def _either(*tests: Callable[[Collection[str]], bool]) -> Callable[[Collection[str]], bool]:
    return lambda names: any(test(names) for test in tests)


def _twins(names: Collection[str]) -> bool:
    """Whether an HDF5 file lies next to a video with the same name, like `0.hdf5` and `0.mp4` of EgoDex."""
    stems = {name.rpartition(".")[0] for name in names if name.lower().endswith(".mp4")}
    return any(name.lower().endswith((".hdf5", ".h5")) and name.rpartition(".")[0] in stems for name in names)


KNOWN_FORMATS = (
    KnownFormat(
        "a LeRobot data set",
        _either(
            _all(r"(^|/)meta/info\.json$", r"(^|/)(data/.*\.parquet|meta/(tasks|episodes|stats).*|videos/.*\.mp4)$"),
            _any(r"(^|/)observation\.images?(\.[^/]+)?/"),
            _any(r"(^|/)data/chunk-\d+/(episode_\d+|file-\d+)\.parquet$"),
        ),
        VIDEOS_ONLY,
        ("meta/info.json",),
    ),
    KnownFormat(
        "AgiBot World",
        _either(
            _all(r"(^|/)task_info/task_\d+\.json$", r"(^|/)observations/"),
            _all(r"(^|/)proprio_stats/", r"(^|/)observations/"),
            _any(r"(^|/)proprio_stats/\d+/\d+/proprio_stats\.h5$"),
            _any(r"(^|/)observations/\d+/\d+/videos/\w+_(color|depth)\.\w+$"),
        ),
        VIDEOS_ONLY,
        ("task_info", "observations"),
    ),
    KnownFormat(
        "DROID in its raw form",
        _either(
            _all(r"(^|/)metadata_[^/]*\.json$", r"(^|/)(trajectory\.h5|recordings/)"),
            _all(r"(^|/)trajectory\.h5$", r"(^|/)recordings/"),
        ),
        f"Its RLDS form (gs://gresearch/robotics/droid) can be read. {VIDEOS_ONLY}",
        ("trajectory.h5",),
    ),
    KnownFormat(
        "a set of HDF5 files next to videos with the same names, such as EgoDex",
        _twins,
        VIDEOS_ONLY,
    ),
    KnownFormat("Ego4D", _any(r"(^|/)ego4d\.json$"), VIDEOS_ONLY, ("ego4d.json",)),
    KnownFormat("Ego-Exo4D", _all(r"(^|/)takes\.json$", r"(^|/)takes/"), VIDEOS_ONLY, ("takes.json", "takes")),
    KnownFormat("EPIC-KITCHENS", _any(r"(^|/)epic_100_\w+\.csv$"), VIDEOS_ONLY),
    KnownFormat(
        "BridgeData V2 in its raw form", _any(r"(^|/)(obs_dict|policy_out)\.pkl$"), "Its RLDS form can be read: fetch that"
    ),
    KnownFormat("a Zarr store", _any(r"\.zarr(/|\.zip$)|(^|/)(\.zarray|\.zgroup|\.zmetadata|zarr\.json)$"), _CONVERT),
    KnownFormat("MCAP recordings", _any(r"\.mcap(\.\w+)?$"), _CONVERT),
    KnownFormat("ROS recordings (rosbag)", _any(r"\.(bag|db3)(\.\w+)?$"), _CONVERT),
    KnownFormat(
        "an array_record data set",
        _any(r"\.array_?record(-\d|$)|\.riegeli(-\d|$)"),
        "Convert it to TFRecord: `tfds convert_format --root_data_dir=OLD --out_dir=NEW --out_file_format=tfrecord`",
    ),
    KnownFormat(
        "a Hugging Face data set (Arrow)", _all(r"\.arrow$", r"(^|/)(state|dataset_info|dataset_dict)\.json$"), _CONVERT
    ),
    KnownFormat(
        "episode shards of ivideogpt-ingest",
        _all(r"(^|/)index\.parquet$", r"(^|/)dataset\.json$", r"\.tar$"),
        "They are ready: pass their folder to ivideogpt-tokenize --shards",
    ),
    KnownFormat(
        "token shards of ivideogpt-tokenize",
        _any(r"(^|/)\w+-\d{6}\.arrow$"),
        "They are ready: pass their folder to ivideogpt-train --tokens",
    ),
    KnownFormat("Parquet tables (a Hugging Face data set)", _any(r"\.parquet$"), _CONVERT, leftover=True),
    KnownFormat(
        "archives",
        _any(r"\.(tar|tgz|zip|7z|rar|tar\.\w+)$"),
        "Unpack them, and pass the unpacked folder",
        leftover=True,
    ),
)
_SAMPLED = 50


def recognise(names: Iterable[str], leftover: bool = False) -> KnownFormat | None:
    """Return the known format of a data set, or None.

    Args:
        names: Names of its files, as paths from its folder, including hidden files.
        leftover: Also look for formats with `leftover`.
    """
    sample = _sample(names)
    return next((known for known in KNOWN_FORMATS if known.leftover <= leftover and known.matches(sample)), None)


def _sample(names: Iterable[str]) -> list[str]:
    """Return some names per folder and ending, without side files, so that a million files are recognised quickly."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    sample = []
    for name in names:
        place = (name.rpartition("/")[0], ending(name))
        if counts[place] < _SAMPLED and (not is_side_file(name) or _ZARR_FILE.search(name)):
            counts[place] += 1
            sample.append(name)
    return sample
