"""Which kind HDF5 files are of, told by what the groups at their top are called."""

from collections.abc import Sequence

from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError, SourceError
from pipeline.sources.hdf5 import process as hdf5_process

_SHOWN = 8
# What the groups of a file's top level tell of its kind.
_GROUPS: dict[str, tuple[str | None, str]] = {
    "env": ("robonet", "RoboNet"),
    "data": ("vp2", "robomimic"),
    "observations": (None, "ALOHA's HDF5"),
    "transforms": (None, "EgoDex's HDF5"),
    "observation": (None, "DROID's raw HDF5"),
}


def hdf5_kind(paths: Sequence[str]) -> str:
    """Which kind HDF5 files are of, by the first one that tells; some may be damaged.

    Raises:
        SourceError: None tells, or of a kind that can't be read.
    """
    looked, errors = paths[:_SHOWN], []
    tops: list[str] = []
    for path in looked:
        try:
            found = str(hdf5_process.call("group", path, tuple(_GROUPS)) or "")
            tops = tops or list(hdf5_process.call("top", path))
        except BadEpisodeError as error:
            errors.append(error)
            continue
        kind, name = _GROUPS.get(found, (None, ""))
        if kind is not None:
            return kind
        if name:
            raise SourceError(f"{path} is {name}, which can't be read yet. Convert it to RLDS or to npz episodes first")
    if len(errors) == len(looked):
        again = ". Fetch them again" if any(isinstance(error, DamagedEpisodeError) for error in errors) else ""
        raise SourceError(f"{len(looked)} of the {len(paths)} HDF5 files can't be read, {paths[0]}: {errors[0]}{again}")
    raise SourceError(
        f"{paths[0]} and the files beside it are HDF5 of an unknown kind: neither RoboNet's (group `env`) nor robomimic's "
        f"as in VP2 (group `data`); at the top they have {', '.join(tops[:_SHOWN]) or 'nothing'}. Convert them to RLDS or to "
        "npz episodes, or name another folder with --source"
    )
