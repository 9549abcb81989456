"""HDF5 files, read with suspicion: nothing outside the file is followed, nothing larger than an episode is taken.

HDF5 can point into other files (external links, external storage, virtual data sets); a file that does so is refused, since it
would let whoever made it have any file of the worker's read.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from pipeline import storage
from pipeline.errors import BadEpisodeError, DamagedEpisodeError, SourceError
from pipeline.sources.base import MAX_EPISODE_BYTES, MAX_FRAMES, MAX_RECORDS

ENDINGS = (".hdf5", ".h5")
_MAX_TEXT_BYTES = 10_000
# What h5py raises for damage: anything, depending on where in the file it lies.
DAMAGE = (OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError)


@contextlib.contextmanager
def opened(path: str) -> Iterator[h5py.File]:
    """An HDF5 file, local or behind a URL.

    Raises:
        SourceError: It can't be opened at all.
        BadEpisodeError: It opens, but is no sound HDF5; also where that shows only within the block.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(storage.open_read(path))
        except OSError as error:
            raise SourceError(f"{path} can't be opened: {error}") from error
        try:
            yield stack.enter_context(h5py.File(file, "r"))
        except DAMAGE as error:
            raise DamagedEpisodeError(f"no sound HDF5 file of this kind: {error}") from error


def find(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | None:
    """What lies at `path` below a group, or None.

    Raises:
        BadEpisodeError: The way there leads through a link, or to data outside the file.
    """
    found = group
    for part in path.split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise BadEpisodeError(f"{path} is a link, which may lead out of the file")
        found = found[part]
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        raise BadEpisodeError(f"{path} keeps its data in another file")
    return found


def array(group: h5py.Group, path: str) -> np.ndarray:
    """The data set at `path` below a group, whole.

    Raises:
        BadEpisodeError: There is none, or it is larger than any episode.
    """
    found = find(group, path)
    if not isinstance(found, h5py.Dataset):
        raise BadEpisodeError(f"the file has no data set {path}")
    # What is compressed together comes out together.
    if found.size is None or max(found.size, math.prod(found.chunks or ())) * found.dtype.itemsize > MAX_EPISODE_BYTES:
        raise BadEpisodeError(f"{path} has the shape {found.shape}: empty, or larger than any episode")
    return _texts(found, path) if found.dtype.hasobject else np.asarray(found[()])


def _texts(found: h5py.Dataset, path: str) -> np.ndarray:
    """A list of texts of any length, one by one: all of them may point to the same long one."""
    if found.ndim != 1 or h5py.check_string_dtype(found.dtype) is None or len(found) > MAX_RECORDS:
        raise BadEpisodeError(f"{path} has the shape {found.shape} and the type {found.dtype}, not a list of texts")
    texts: list[bytes] = []
    for number in range(len(found)):
        texts.append(found[number])
        if len(texts[-1]) > _MAX_TEXT_BYTES:
            raise BadEpisodeError(f"{path} holds a text of {len(texts[-1])} bytes, the limit is {_MAX_TEXT_BYTES}")
    return np.array(texts, object)


def blocks(group: h5py.Group, path: str, rows: int) -> Iterator[np.ndarray]:
    """The data set at `path` below a group, `rows` of its rows at a time, so that memory stays small whatever its length.

    Raises:
        BadEpisodeError: There is none, or it or a piece of it is larger than any episode.
    """
    found = find(group, path)
    if not isinstance(found, h5py.Dataset) or not found.shape:
        raise BadEpisodeError(f"the file has no data set {path}")
    # What is compressed together comes out together.
    together = max(math.prod(found.shape[1:]) * rows, math.prod(found.chunks or ())) * found.dtype.itemsize
    if len(found) > MAX_FRAMES or together > MAX_EPISODE_BYTES:
        raise BadEpisodeError(f"{path} has the shape {found.shape} in pieces of {found.chunks}: larger than any episode")
    for start in range(0, len(found), rows):
        yield np.asarray(found[start : start + rows])


def numbers(group: h5py.Group, path: str) -> np.ndarray:
    """A data set of numbers a step, (T, A).

    Raises:
        BadEpisodeError: It isn't one.
    """
    found = array(group, path)
    if found.ndim != 2 or found.dtype.kind not in "biuf":
        raise BadEpisodeError(f"{path} has the shape {found.shape} and the type {found.dtype}, not rows of numbers")
    return found


def text(value: Any) -> str:
    """A string as HDF5 files hold it: text, bytes, or an array of one of these."""
    while isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size else ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
