"""Recognises the kind of HDF5 files by the names of their top-level groups."""

from collections.abc import Sequence

from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError, SourceError
from pipeline.sources.hdf5 import process as hdf5_process

_SHOWN = 8
# Top-level group -> kind of source (None if it can't be read), and its common name.
_GROUPS: dict[str, tuple[str | None, str]] = {
    "env": ("robonet", "RoboNet"),
    "data": ("vp2", "robomimic"),
    "observations": (None, "ALOHA's HDF5"),
    "transforms": (None, "EgoDex's HDF5"),
    "observation": (None, "DROID's raw HDF5"),
}


def hdf5_kind(paths: Sequence[str]) -> str:
    """Return the kind of HDF5 files, from the first file with a known group; some files may be damaged.

    Raises:
        SourceError: No file has a known group, or the kind can't be read.
    """
    sample, errors = paths[:_SHOWN], []
    tops: list[str] = []
    for path in sample:
        try:
            group = str(hdf5_process.call("group", path, tuple(_GROUPS)) or "")
            tops = tops or list(hdf5_process.call("top", path))
        except BadEpisodeError as error:
            errors.append(error)
            continue
        kind, name = _GROUPS.get(group, (None, ""))
        if kind is not None:
            return kind
        if name:
            raise SourceError(f"{path} is {name}, which can't be read yet. Convert it to RLDS or to npz episodes first")
    if len(errors) == len(sample):
        again = ". Fetch them again" if any(isinstance(error, DamagedEpisodeError) for error in errors) else ""
        raise SourceError(f"{len(sample)} of the {len(paths)} HDF5 files can't be read, {paths[0]}: {errors[0]}{again}")
    raise SourceError(
        f"{paths[0]} and the files next to it are HDF5 of an unknown kind: neither RoboNet (group `env`) nor robomimic as in "
        f"VP2 (group `data`); their top-level groups are {', '.join(tops[:_SHOWN]) or 'none'}. Convert them to RLDS or to npz "
        "episodes, or pass another folder to --source"
    )
