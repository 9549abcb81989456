"""HDF5 files, read with suspicion: nothing outside the file is followed, nothing larger than an episode is taken.

HDF5 can point into other files (external links, external storage, virtual data sets); a file that does so is refused, since it
would let whoever made it have any file of the worker's read. Whatever calls libhdf5 is here, so that its time can be limited.
"""

import contextlib
import itertools
import math
import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

from pipeline.common import storage
from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError, MissingEpisodeError, StorageError
from pipeline.sources.base import MAX_FRAMES, MAX_RECORDS
from pipeline.sources.guard import is_infrastructure_error

_MAX_TEXT_BYTES = 10_000
MAX_ARRAY_BYTES = 256 << 20  # taken at once: an array, a block of frames, or what is compressed together
_MAX_NUMBERS_BYTES = 64 << 20  # of actions or states, of which several copies are held at a time
# What h5py raises for damage: anything, depending on where in the file it lies.
DAMAGE = (OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError)


class _Limit:
    """How long a call of libhdf5 may take, in seconds of processor time; None where nothing ends it."""

    seconds: int | None = None


def limit_calls(seconds: int) -> None:
    """From now on, let the kernel end this process (SIGXCPU) once a call of libhdf5 takes longer.

    Args:
        seconds: Of processor time, at least 1.
    """
    _Limit.seconds = seconds


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    if _Limit.seconds is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_CPU)
    soft, hard = math.ceil(time.process_time()) + _Limit.seconds, before[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)


@contextlib.contextmanager
def opened(path: str) -> Iterator[h5py.File]:
    """An HDF5 file, local or behind a URL.

    Raises:
        StorageError: The disk or the store it lies on can't be read.
        BadEpisodeError: It opens, but is no sound HDF5; also where that shows only within the block.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(storage.open_read(path))
        except OSError as error:
            if is_infrastructure_error(error):
                raise error if isinstance(error, StorageError) else StorageError(f"{path} can't be opened: {error}") from error
            raise MissingEpisodeError(f"it can't be opened: {error.strerror}") from error
        try:
            with _limited():
                content = h5py.File(file, "r")
            try:
                yield content
            finally:
                with _limited():
                    content.close()
        except MemoryError as error:
            raise BadEpisodeError("it asks for more memory than any episode takes") from error
        except DAMAGE as error:
            raise DamagedEpisodeError(f"no sound HDF5 file of this kind: {error}") from error


def first_group(path: str, groups: Sequence[str]) -> str | None:
    """Which of these groups a file has, the first of them; None where it has none.

    Raises:
        BadEpisodeError: It is damaged.
        StorageError: See `opened`.
    """
    with opened(path) as file:
        return next((group for group in groups if find(file, group) is not None), None)


def top_level(path: str) -> list[str]:
    """The names at the top level of a file.

    Raises:
        BadEpisodeError: It is damaged.
        StorageError: See `opened`.
    """
    with opened(path) as file:
        return names(file)


@_limited()
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


def dataset(group: h5py.Group, path: str) -> h5py.Dataset:
    """The data set at `path` below a group.

    Raises:
        BadEpisodeError: There is none.
    """
    found = find(group, path)
    if not isinstance(found, h5py.Dataset):
        raise BadEpisodeError(f"the file has no data set {path}")
    return found


@_limited()
def array(group: h5py.Group, path: str, limit: int = MAX_ARRAY_BYTES) -> np.ndarray:
    """The data set at `path` below a group, whole.

    Raises:
        BadEpisodeError: There is none, or it takes more than `limit` bytes, as no episode does.
    """
    found = dataset(group, path)
    # What is compressed together comes out together.
    if found.size is None or max(found.size, math.prod(found.chunks or ())) * found.dtype.itemsize > limit:
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
    found = dataset(group, path)
    if not found.shape:
        raise BadEpisodeError(f"{path} is empty")
    # What is compressed together comes out together.
    together = max(math.prod(found.shape[1:]) * rows, math.prod(found.chunks or ())) * found.dtype.itemsize
    if len(found) > MAX_FRAMES or together > MAX_ARRAY_BYTES:
        raise BadEpisodeError(f"{path} has the shape {found.shape} in pieces of {found.chunks}: larger than any episode")
    for start in range(0, len(found), rows):
        with _limited():
            block = np.asarray(found[start : start + rows])
        yield block


@_limited()
def attribute(found: h5py.Group | h5py.Dataset, name: str, default: Any = None) -> Any:
    """An attribute of a group or a data set: a number, a text or a small array of these.

    Raises:
        BadEpisodeError: There is none and no `default` either, or it is too large to be one of these.
    """
    if name not in found.attrs and default is not None:
        return default
    if name not in found.attrs:
        raise BadEpisodeError(f"{found.name} has no attribute {name}")
    stated = found.attrs.get_id(name).get_storage_size()
    value = found.attrs[name] if stated <= _MAX_TEXT_BYTES else None
    if value is None or len(value if isinstance(value, str | bytes) else np.asarray(value).tobytes()) > _MAX_TEXT_BYTES:
        raise BadEpisodeError(f"the attribute {name} of {found.name} takes more than {_MAX_TEXT_BYTES} bytes")
    return value


@_limited()
def names(group: h5py.Group) -> list[str]:
    """The names of what a group holds, sorted, at most `MAX_RECORDS` of them."""
    return sorted(itertools.islice(group, MAX_RECORDS))


def numbers(group: h5py.Group, path: str) -> np.ndarray:
    """A data set of numbers a step, (T, A).

    Raises:
        BadEpisodeError: It isn't one.
    """
    found = array(group, path, _MAX_NUMBERS_BYTES)
    if found.ndim != 2 or found.dtype.kind not in "biuf":
        raise BadEpisodeError(f"{path} has the shape {found.shape} and the type {found.dtype}, not rows of numbers")
    return found


def text(value: Any) -> str:
    """A string as HDF5 files hold it: text, bytes, or an array of one of these."""
    while isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size else ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
