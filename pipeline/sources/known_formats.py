"""Data sets in forms that people publish, told by the names of their files: a table of forms that can't be read yet.

They are recognised before "a folder of videos" is assumed, because their videos alone are not the data set: episodes are glued
together in them, cameras are mixed, and actions and texts lie in other files. Names decide, so nothing needs to be opened.
"""

import collections
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pipeline.sources.side_files import ending, is_side_file

ALONE = (
    "To take its videos alone, without actions and texts, name the folder of one camera's videos with --source and pass "
    "--kind video"
)
_ZARR_FILE = re.compile(r"(^|/)\.z(array|group|metadata)$")
_CONVERT = "Convert it to RLDS, to npz episodes or to videos first"


@dataclass(frozen=True)
class Form:
    """A form of data sets.

    Attributes:
        name: As people call it.
        has: Whether the names of files, as paths from one folder, are such a data set's.
        remedy: What to do with it.
        marks: Files and folders, all of which lie in its top folder and tell it, seen from a folder within it.
        leftover: Such files may lie beside other data that was made of them; they say something only where nothing else does.
    """

    name: str
    has: Callable[[Collection[str]], bool]
    remedy: str
    marks: tuple[str, ...] = ()
    leftover: bool = False


def _any(pattern: str) -> Callable[[Collection[str]], bool]:
    """Whether a name has a part like `pattern`."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda names: any(map(compiled.search, names))


def _all(*patterns: str) -> Callable[[Collection[str]], bool]:
    tests = [_any(pattern) for pattern in patterns]
    return lambda names: all(test(names) for test in tests)


def _either(*tests: Callable[[Collection[str]], bool]) -> Callable[[Collection[str]], bool]:
    return lambda names: any(test(names) for test in tests)


def _twins(names: Collection[str]) -> bool:
    """Whether an HDF5 file lies beside a video of the same name, as EgoDex's `0.hdf5` and `0.mp4`."""
    stems = {name.rpartition(".")[0] for name in names if name.lower().endswith(".mp4")}
    return any(name.lower().endswith((".hdf5", ".h5")) and name.rpartition(".")[0] in stems for name in names)


FORMS = (
    Form(
        "a LeRobot data set",
        _either(
            _all(r"(^|/)meta/info\.json$", r"(^|/)(data/.*\.parquet|meta/(tasks|episodes|stats).*|videos/.*\.mp4)$"),
            _any(r"(^|/)observation\.images?(\.[^/]+)?/"),
            _any(r"(^|/)data/chunk-\d+/(episode_\d+|file-\d+)\.parquet$"),
        ),
        ALONE,
        ("meta/info.json",),
    ),
    Form(
        "AgiBot World",
        _either(
            _all(r"(^|/)task_info/task_\d+\.json$", r"(^|/)observations/"),
            _all(r"(^|/)proprio_stats/", r"(^|/)observations/"),
            _any(r"(^|/)proprio_stats/\d+/\d+/proprio_stats\.h5$"),
            _any(r"(^|/)observations/\d+/\d+/videos/\w+_(color|depth)\.\w+$"),
        ),
        ALONE,
        ("task_info", "observations"),
    ),
    Form(
        "DROID in its raw form",
        _either(
            _all(r"(^|/)metadata_[^/]*\.json$", r"(^|/)(trajectory\.h5|recordings/)"),
            _all(r"(^|/)trajectory\.h5$", r"(^|/)recordings/"),
        ),
        f"Its RLDS form (gs://gresearch/robotics/droid) can be read. {ALONE}",
        ("trajectory.h5",),
    ),
    Form(
        "a set of HDF5 files beside videos of the same names, such as EgoDex",
        _twins,
        ALONE,
    ),
    Form("Ego4D", _any(r"(^|/)ego4d\.json$"), ALONE, ("ego4d.json",)),
    Form("Ego-Exo4D", _all(r"(^|/)takes\.json$", r"(^|/)takes/"), ALONE, ("takes.json", "takes")),
    Form("EPIC-KITCHENS", _any(r"(^|/)epic_100_\w+\.csv$"), ALONE),
    Form("BridgeData V2 in its raw form", _any(r"(^|/)(obs_dict|policy_out)\.pkl$"), "Its RLDS form can be read: fetch that"),
    Form("a Zarr store", _any(r"\.zarr(/|\.zip$)|(^|/)(\.zarray|\.zgroup|\.zmetadata|zarr\.json)$"), _CONVERT),
    Form("MCAP recordings", _any(r"\.mcap(\.\w+)?$"), _CONVERT),
    Form("ROS recordings (rosbag)", _any(r"\.(bag|db3)(\.\w+)?$"), _CONVERT),
    Form(
        "an array_record data set",
        _any(r"\.array_?record(-\d|$)|\.riegeli(-\d|$)"),
        "Convert it to TFRecord: `tfds convert_format --root_data_dir=OLD --out_dir=NEW --out_file_format=tfrecord`",
    ),
    Form("a Hugging Face data set (Arrow)", _all(r"\.arrow$", r"(^|/)(state|dataset_info|dataset_dict)\.json$"), _CONVERT),
    Form(
        "episode shards of ivideogpt-ingest",
        _all(r"(^|/)index\.parquet$", r"(^|/)dataset\.json$", r"\.tar$"),
        "They are ready: pass their folder to ivideogpt-tokenize --shards",
    ),
    Form(
        "token shards of ivideogpt-tokenize",
        _any(r"(^|/)\w+-\d{6}\.arrow$"),
        "They are ready: pass their folder to ivideogpt-train --tokens",
    ),
    Form("Parquet tables (a Hugging Face data set)", _any(r"\.parquet$"), _CONVERT, leftover=True),
    Form(
        "archives",
        _any(r"\.(tar|tgz|zip|7z|rar|tar\.\w+)$"),
        "Unpack them, and name the folder of what comes out",
        leftover=True,
    ),
)
_FEW = 50


def recognise(names: Iterable[str], leftover: bool = False) -> Form | None:
    """The form of a data set; None where none is known.

    Args:
        names: Of its files, as paths from its folder, hidden ones included.
        leftover: Look for forms that say something only where nothing else does, too.
    """
    known = _few(names)
    return next((form for form in FORMS if form.leftover <= leftover and form.has(known)), None)


def _few(names: Iterable[str]) -> list[str]:
    """A few names of each folder and ending, so that a million videos take no longer than their listing; no side files."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    few = []
    for name in names:
        place = (name.rpartition("/")[0], ending(name))
        if counts[place] < _FEW and (not is_side_file(name) or _ZARR_FILE.search(name)):
            counts[place] += 1
            few.append(name)
    return few
