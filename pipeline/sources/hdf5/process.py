"""HDF5 is read in a process of its own, which damage may hang or crash in place of the work.

libhdf5 is written in C and loops for ever on some damaged files, where no timer of Python's could end it. So every worker keeps
a child that reads for it, and the kernel ends that child once one call of libhdf5 has had its share of processor time: a limit
that a busy machine or a slow store doesn't shorten. The price is a process a worker and, for each episode, a copy through a
pipe. Messages are msgpack; see `hdf5_child` for the other end.
"""

import abc
import dataclasses
import os
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import msgpack
import numpy as np

from pipeline.common import errors
from pipeline.common.errors import BadEpisodeError, DamagedEpisodeError, KilledError
from pipeline.episodes.episode import Episode
from pipeline.processes.child_processes import Child
from pipeline.sources.base import BadEpisode, Source, SourceShard

CALL_SECONDS = 30  # of processor time for one call of libhdf5, which takes a tenth of that for the largest there may be
_FAULTS = (signal.SIGXCPU, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
_LENGTH_BYTES = 8
HDF5_ENDINGS = (".hdf5", ".h5")
_ATTEMPTS = 2


class PipeClosed(Exception):
    """The other end of a pipe is gone."""


class _Reader:
    """One child. It ends when its input does, and at once when its parent is gone."""

    def __init__(self) -> None:
        self._process = Child(
            [sys.executable, "-m", "pipeline.sources.hdf5.child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            receive(self._process.stdout)
        except PipeClosed as error:
            raise KilledError(f"no process that reads HDF5 can be started: it ended with {self.status()}") from error

    def ask(self, request: bytes) -> Any:
        try:
            send(self._process.stdin, request)
            return receive(self._process.stdout)
        except BrokenPipeError as error:
            raise PipeClosed from error

    def close(self) -> None:
        # A process object that is merely dropped keeps its pipes open.
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def status(self) -> int:
        """With what a child ended that died."""
        self._process.kill()
        self._process.communicate()
        return self._process.returncode


_idle: list[_Reader] = []


def forget_children() -> None:
    """Let go of all children, which end by that unless another process still holds their pipes."""
    while _idle:
        _idle.pop().close()


# A pipe serves one process only.
os.register_at_fork(after_in_child=forget_children)


def call(function: str, *arguments: Any) -> Any:
    """What a function of `hdf5_child` returns.

    Raises:
        BadEpisodeError: libhdf5 does not come to an end, or crashes; or as the function does.
        KilledError: The child was killed by somebody else, twice.
        SourceError: As the function does.
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
            return _raised(answer)
    if status == -signal.SIGXCPU:
        raise DamagedEpisodeError(f"libhdf5 does not come to an end with it in {CALL_SECONDS} s. Fetch the file again")
    if -status in _FAULTS:
        raise DamagedEpisodeError(f"libhdf5 crashes on it ({signal.Signals(-status).name}). Fetch the file again")
    raise KilledError(f"the process that reads HDF5 was killed, it ended with {status}. Run the same command again")


def _raised(answer: Any) -> Any:
    """The value of an answer, or the error that it is."""
    if "value" in answer:
        return answer["value"]
    raise getattr(errors, answer["error"])(answer["message"])


class Hdf5Source(Source):
    """A kind of source whose files are HDF5."""

    def is_data(self, name: str) -> bool:
        """See `Source.is_data`."""
        return super().is_data(name) and name.endswith(HDF5_ENDINGS)

    @abc.abstractmethod
    def read_here(self, shard: SourceShard, position: int, name: str) -> Episode:
        """One episode, read in this process.

        Args:
            shard: The file.
            position: Of the record.
            name: Of the episode in the file, where it holds several.

        Raises:
            BadEpisodeError: It can't be used.
            StorageError: The disk or the store it lies on can't be read.
        """

    def read_apart(self, shard: SourceShard, position: int, name: str = "") -> Episode | BadEpisode:
        """What `read_here` gives in the child; arguments and errors as there."""
        try:
            found = call("episode", self.kind, self.folder, self.entry, self.form, shard, position, name)
        except BadEpisodeError as error:
            return BadEpisode.of(error)
        return Episode(**{**found, "frames": list(found["frames"])})


class _Array(NamedTuple):
    """An array in a message; msgpack itself knows none."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


_ARRAY_CODE = 1


def _plain(value: Any) -> Any:
    """A value in a form that msgpack holds."""
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
    """A message; its arrays and data classes, the latter as mappings, included."""
    return bytes(msgpack.packb(value, default=_plain, unicode_errors="surrogateescape"))


def send(pipe: Any, message: bytes) -> None:
    """Write a message to a pipe."""
    pipe.write(len(message).to_bytes(_LENGTH_BYTES))
    pipe.write(message)
    pipe.flush()


def receive(pipe: Any) -> Any:
    """The content of the next message of a pipe, lists as tuples.

    Raises:
        PipeClosed: There is none.
    """
    length = int.from_bytes(pipe.read(_LENGTH_BYTES) or bytes(_LENGTH_BYTES))
    message = pipe.read(length)
    if not length or len(message) < length:
        raise PipeClosed
    return msgpack.unpackb(message, ext_hook=_unplain, use_list=False, strict_map_key=False, unicode_errors="surrogateescape")
