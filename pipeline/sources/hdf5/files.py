"""Reads untrusted HDF5 files: follows no links out of the file, and reads nothing larger than an episode.

HDF5 can point into other files (external links, external storage, virtual data sets). Such files are refused, as they could
make a worker read any of its files. All calls of libhdf5 are in this module, so that their time can be limited.
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
MAX_ARRAY_BYTES = 256 << 20  # limit of one read: an array, a block of frames, or a compressed chunk
_MAX_NUMBERS_BYTES = 64 << 20  # limit of actions or states; several copies are held at a time
# Errors that h5py raises for damage, depending on its place in the file.
DAMAGE = (OSError, RuntimeError, ValueError, LookupError, TypeError, ArithmeticError)


class _Limit:
    """Limit of processor time for one call of libhdf5 in seconds; None if there is no limit."""

    seconds: int | None = None


def limit_calls(seconds: int) -> None:
    """Let the kernel end this process (SIGXCPU) if a call of libhdf5 takes longer than `seconds`.

    Args:
        seconds: Seconds of processor time, at least 1.
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
    """Open an HDF5 file, local or behind a URL.

    Raises:
        StorageError: The disk or the object store can't be read.
        BadEpisodeError: The file is damaged or not HDF5; also raised for errors inside the block.
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
    """Return the first of `groups` that a file has, or None.

    Raises:
        BadEpisodeError: The file is damaged.
        StorageError: See `opened`.
    """
    with opened(path) as file:
        return next((group for group in groups if find(file, group) is not None), None)


def top_level(path: str) -> list[str]:
    """Return the names at the top level of a file.

    Raises:
        BadEpisodeError: The file is damaged.
        StorageError: See `opened`.
    """
    with opened(path) as file:
        return names(file)


@_limited()
def find(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | None:
    """Return the object at `path` below a group, or None.

    Raises:
        BadEpisodeError: The path leads through a link, or to data outside the file.
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
    """Return the data set at `path` below a group.

    Raises:
        BadEpisodeError: It doesn't exist.
    """
    found = find(group, path)
    if not isinstance(found, h5py.Dataset):
        raise BadEpisodeError(f"the file has no data set {path}")
    return found


@_limited()
def array(group: h5py.Group, path: str, limit: int = MAX_ARRAY_BYTES) -> np.ndarray:
    """Read the whole data set at `path` below a group.

    Raises:
        BadEpisodeError: It doesn't exist, or takes more than `limit` bytes.
    """
    found = dataset(group, path)
    # A chunk is decompressed as a whole.
    if found.size is None or max(found.size, math.prod(found.chunks or ())) * found.dtype.itemsize > limit:
        raise BadEpisodeError(f"{path} has the shape {found.shape}: empty, or larger than any episode")
    return _texts(found, path) if found.dtype.hasobject else np.asarray(found[()])


def _texts(found: h5py.Dataset, path: str) -> np.ndarray:
    """Read a list of texts one by one, because all of them may point to the same long text."""
    if found.ndim != 1 or h5py.check_string_dtype(found.dtype) is None or len(found) > MAX_RECORDS:
        raise BadEpisodeError(f"{path} has the shape {found.shape} and the type {found.dtype}, not a list of texts")
    texts: list[bytes] = []
    for number in range(len(found)):
        texts.append(found[number])
        if len(texts[-1]) > _MAX_TEXT_BYTES:
            raise BadEpisodeError(f"{path} holds a text of {len(texts[-1])} bytes, the limit is {_MAX_TEXT_BYTES}")
    return np.array(texts, object)


def blocks(group: h5py.Group, path: str, rows: int) -> Iterator[np.ndarray]:
    """Yield the data set at `path` below a group in blocks of `rows` rows, so that memory stays small.

    Raises:
        BadEpisodeError: It doesn't exist, or it or one of its chunks is larger than any episode.
    """
    found = dataset(group, path)
    if not found.shape:
        raise BadEpisodeError(f"{path} is empty")
    # A chunk is decompressed as a whole.
    block_bytes = max(math.prod(found.shape[1:]) * rows, math.prod(found.chunks or ())) * found.dtype.itemsize
    if len(found) > MAX_FRAMES or block_bytes > MAX_ARRAY_BYTES:
        raise BadEpisodeError(f"{path} has the shape {found.shape} in pieces of {found.chunks}: larger than any episode")
    for start in range(0, len(found), rows):
        with _limited():
            block = np.asarray(found[start : start + rows])
        yield block


@_limited()
def attribute(found: h5py.Group | h5py.Dataset, name: str, default: Any = None) -> Any:
    """Return an attribute of a group or data set: a number, a text or a small array of these.

    Raises:
        BadEpisodeError: It doesn't exist and there is no `default`, or it is too large.
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
    """Return the sorted names in a group, at most `MAX_RECORDS` of them."""
    return sorted(itertools.islice(group, MAX_RECORDS))


def numbers(group: h5py.Group, path: str) -> np.ndarray:
    """Read a data set of numbers per step, (T, A).

    Raises:
        BadEpisodeError: It doesn't hold rows of numbers, or is too large.
    """
    found = array(group, path, _MAX_NUMBERS_BYTES)
    if found.ndim != 2 or found.dtype.kind not in "biuf":
        raise BadEpisodeError(f"{path} has the shape {found.shape} and the type {found.dtype}, not rows of numbers")
    return found


def text(value: Any) -> str:
    """Convert a string of an HDF5 file to text; it may be text, bytes, or an array of one of these."""
    while isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size else ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
