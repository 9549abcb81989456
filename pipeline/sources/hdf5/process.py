"""Reads HDF5 in a child process, so that a damaged file can only hang or crash the child.

libhdf5 loops forever on some damaged files, and no Python timer can stop its C code. So each worker has a child that reads for
it, and the kernel ends the child if one call of libhdf5 uses too much processor time. A busy machine or a slow store doesn't
shorten this limit. The price is one process per worker, and one copy of each episode through a pipe. Messages are msgpack; the
other end is `pipeline.sources.hdf5.child`.
"""

import abc
import dataclasses
import os
import signal
import subprocess
import sys
from typing import IO, Any, NamedTuple

import msgpack
import numpy as np

from pipeline.common import errors
from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError, KilledError
from pipeline.episodes.episode import Episode
from pipeline.processes.child_processes import Child
from pipeline.sources.base import BadEpisode, Source, SourceShard

CALL_SECONDS = 30  # limit of processor time for one call of libhdf5; the largest valid call takes a tenth of it
_FAULTS = (signal.SIGXCPU, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
_LENGTH_BYTES = 8
HDF5_ENDINGS = (".hdf5", ".h5")
_ATTEMPTS = 2


class PipeClosed(Exception):
    """The other end of a pipe was closed."""


class _Reader:
    """One child process. It ends when its input ends, or when its parent does."""

    def __init__(self) -> None:
        self._process = Child(
            [sys.executable, "-m", "pipeline.sources.hdf5.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        try:
            receive(self._answers)
        except PipeClosed as error:
            raise KilledError(f"the process that reads HDF5 can't be started: its exit status is {self.status()}") from error

    def ask(self, request: bytes) -> Any:
        try:
            send(self._requests, request)
            return receive(self._answers)
        except BrokenPipeError as error:
            raise PipeClosed from error

    def close(self) -> None:
        # Dropping a process object doesn't close its pipes.
        self._requests.close()
        self._answers.close()

    def status(self) -> int:
        """Return the exit status of a child that died."""
        self._process.kill()
        self._process.communicate()
        return self._process.returncode


_idle: list[_Reader] = []


def forget_children() -> None:
    """Close the pipes of all idle children, so that they end."""
    while _idle:
        _idle.pop().close()


# A forked process must not use the pipes of its parent.
os.register_at_fork(after_in_child=forget_children)


def call(function: str, *arguments: Any) -> Any:
    """Run a function of `pipeline.sources.hdf5.child` in a child process and return its value.

    Raises:
        BadEpisodeError: libhdf5 hangs or crashes; or the function raised it.
        KilledError: The child was killed from outside, twice.
        SourceError: The function raised it.
    """
    request = pack([function, CALL_SECONDS, arguments])
    status = 0
    for _ in range(_ATTEMPTS):
        reader = _idle.pop() if _idle else _Reader()
        try:
            answer = reader.ask(request)
        except PipeClosed:
            status = reader.status()
            if -status in _FAULTS:
                break
        else:
            _idle.append(reader)
            return _value(answer)
    if status == -signal.SIGXCPU:
        raise DamagedEpisodeError(f"libhdf5 does not come to an end with it in {CALL_SECONDS} s. Fetch the file again")
    if -status in _FAULTS:
        raise DamagedEpisodeError(f"libhdf5 crashes on it ({signal.Signals(-status).name}). Fetch the file again")
    raise KilledError(f"the process that reads HDF5 was killed; its exit status was {status}. Run the same command again")


def _value(answer: Any) -> Any:
    """Return the value in an answer, or raise the error in it."""
    if "value" in answer:
        return answer["value"]
    raise getattr(errors, answer["error"])(answer["message"])


class Hdf5Source(Source):
    """A source whose files are HDF5."""

    def is_data(self, name: str) -> bool:
        """See `Source.is_data`."""
        return super().is_data(name) and name.endswith(HDF5_ENDINGS)

    @abc.abstractmethod
    def read_here(self, shard: SourceShard, position: int, name: str) -> Episode:
        """Read one episode in this process.

        Args:
            shard: The file.
            position: Position of the record.
            name: Name of the episode in the file, if the file holds several.

        Raises:
            BadEpisodeError: The episode can't be used.
            StorageError: The disk or the object store can't be read.
        """

    def read_apart(self, shard: SourceShard, position: int, name: str = "") -> Episode | BadEpisode:
        """Run `read_here` in the child process; arguments and errors are the same."""
        try:
            found = call("episode", self.kind, self.folder, self.entry, self.form, shard, position, name)
        except BadEpisodeError as error:
            return BadEpisode.of(error)
        return Episode(**{**found, "frames": list(found["frames"])})


class _Array(NamedTuple):
    """An array in a message; msgpack has no type for arrays."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


_ARRAY_CODE = 1


def _plain(value: Any) -> Any:
    """Convert an array or a data class to a msgpack type."""
    if isinstance(value, np.ndarray):
        array = _Array(value.dtype.str, value.shape, value.tobytes())
        return msgpack.ExtType(_ARRAY_CODE, msgpack.packb(tuple(array)))
    if dataclasses.is_dataclass(value):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    raise TypeError(f"{type(value)} in a message")


def _unplain(code: int, data: bytes) -> np.ndarray:
    if code != _ARRAY_CODE:
        raise ValueError(f"code {code} in a message")
    array = _Array(*msgpack.unpackb(data))
    return np.frombuffer(array.data, array.dtype).reshape(array.shape)


def pack(value: Any) -> bytes:
    """Encode a value as a message; data classes become mappings."""
    return bytes(msgpack.packb(value, default=_plain, unicode_errors="surrogateescape"))


def send(pipe: IO[bytes], message: bytes) -> None:
    """Write a message to a pipe."""
    pipe.write(len(message).to_bytes(_LENGTH_BYTES))
    pipe.write(message)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read the next message from a pipe; lists become tuples.

    Raises:
        PipeClosed: The pipe was closed before a whole message arrived.
    """
    length = int.from_bytes(pipe.read(_LENGTH_BYTES) or bytes(_LENGTH_BYTES))
    message = pipe.read(length)
    if not length or len(message) < length:
        raise PipeClosed
    return msgpack.unpackb(message, ext_hook=_unplain, use_list=False, strict_map_key=False, unicode_errors="surrogateescape")
