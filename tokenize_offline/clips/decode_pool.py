"""Reads episodes in a pool of processes, so that a crash costs one episode and not the run.

Image decoders are C code that reads untrusted input: they may crash, or run out of memory. A process reads one episode at a
time, so the episode that kills it is known. Pixels come back through a socket directly into the tensor that the model reads,
which costs about 1 ms for an episode of eight clips. Processes are forked from a server that has imported torch already.
"""

import dataclasses
import logging
import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Self

import torch

from pipeline.common.errors import BadEpisodeError, ProjectError
from pipeline.config.recipe import ClipsConfig
from pipeline.episodes.episode import Episode
from pipeline.processes.child_processes import follow_parent
from tokenize_offline.clips.decode import EpisodeClips, read_clips

log = logging.getLogger(__name__)

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pipeline.processes.fork_server", "tokenize_offline.clips.decode"])
# An episode that kills its reader this many times is left out: the first time may be chance.
_MAX_ATTEMPTS = 2
# Only a decoder in an endless loop takes that long.
_TIMEOUT_SECONDS = 600.0
_EXIT_SECONDS = 5.0

Read = Callable[[Episode, ClipsConfig, int, float, int], EpisodeClips]


@dataclass(frozen=True)
class _Request:
    episode: Episode
    views: int
    held_out_share: float


@dataclass(frozen=True)
class _Reply:
    """A reader's answer: the clips without pixels, and the shape of the pixels, which follow."""

    clips: EpisodeClips
    shape: tuple[int, ...]


class _ReaderDiedError(Exception):
    """The reader process ended; the message says how."""


def prepare_readers() -> None:
    """Start the server that readers are forked from. It imports torch in the background, so call this early."""
    forkserver.ensure_running()


class ReaderPool:
    """Reads episodes in processes. Use it as a context manager, and call `read` from as many threads as it has processes."""

    def __init__(self, clips: ClipsConfig, side: int, size: int, read: Read = read_clips) -> None:
        """Create the pool; a process starts when it is first needed.

        Args:
            clips: Clip settings with everything filled in (`resolve_clips`).
            side: Side S of the square frames in pixels.
            size: Number of processes.
            read: The function they call: `read_clips`, or another module-level function with its arguments.
        """
        self._work = (clips, side, read)
        self._starting = threading.Lock()
        self._idle: queue.SimpleQueue[_Reader | None] = queue.SimpleQueue()
        self._size = size
        for _ in range(size):
            self._idle.put(None)

    def __enter__(self) -> Self:
        prepare_readers()
        return self

    def __exit__(self, *_: object) -> None:
        readers = [self._idle.get() for _ in range(self._size)]
        for reader in readers:
            if reader is not None:
                reader.stop()

    def read(self, episode: Episode, views: int, held_out_share: float) -> EpisodeClips:
        """The clips of an episode, read by `read_clips` in a process.

        Raises:
            BadEpisodeError: `read_clips` raised it, or the episode killed its reader twice.
            ProjectError: `read_clips` raised it, or a reader can't start.
        """
        request = _Request(episode, views, held_out_share)
        reader = self._idle.get()
        try:
            for _ in range(_MAX_ATTEMPTS):
                if reader is None:
                    reader = self._start()
                try:
                    return reader.ask(request)
                except _ReaderDiedError as death:
                    log.warning(
                        "a reader ended with %s at episode %s of %s (%s, record %d)",
                        *(death, episode.key, episode.dataset, episode.source_file, episode.source_record),
                    )
                    reader = None
        finally:
            self._idle.put(reader)
        raise BadEpisodeError(f"killed its reader process {_MAX_ATTEMPTS} times")

    def _start(self) -> "_Reader":
        with self._starting:
            return _Reader(*self._work)


class _Reader:
    """The parent's handle of one reader process."""

    def __init__(self, clips: ClipsConfig, side: int, read: Read) -> None:
        self._connection, child = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(child, clips, side, read), name="reader", daemon=True)
        self._process.start()
        child.close()
        try:
            self._connection.recv()
        except (EOFError, OSError) as error:
            raise ProjectError(
                f"a reader process ended with {self._exit_reason()} while starting: read its message above, and check whether "
                "this machine has memory for another process"
            ) from error

    def ask(self, request: _Request) -> EpisodeClips:
        try:
            self._connection.send(request)
            if not self._connection.poll(_TIMEOUT_SECONDS):
                self._process.kill()
                raise _ReaderDiedError(f"no answer in {_TIMEOUT_SECONDS:.0f} s")
            reply = self._connection.recv()
            if isinstance(reply, BaseException):
                raise reply
            pixels = torch.empty(reply.shape)
            _receive(self._connection.fileno(), pixels.numpy().data.cast("B"))
        except (EOFError, OSError) as error:
            self._connection.close()
            raise _ReaderDiedError(self._exit_reason()) from error
        return dataclasses.replace(reply.clips, pixels=list(pixels))

    def stop(self) -> None:
        self._connection.close()
        self._process.join(_EXIT_SECONDS)
        self._process.kill()

    def _exit_reason(self) -> str:
        self._process.join(_EXIT_SECONDS)
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"


def _serve(connection: Connection, clips: ClipsConfig, side: int, read: Read) -> None:
    """Answer requests until the parent closes the connection or ends."""
    follow_parent()
    # Episodes are read in parallel, and the model needs the cores.
    torch.set_num_threads(1)
    try:
        connection.send(None)
        while True:
            _answer(connection, connection.recv(), clips, side, read)
    except (EOFError, OSError):
        return


def _answer(connection: Connection, request: _Request, clips: ClipsConfig, side: int, read: Read) -> None:
    try:
        made = read(request.episode, clips, request.views, request.held_out_share, side)
    except (BadEpisodeError, ProjectError) as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(f"reading episode {request.episode.key} failed\n{traceback.format_exc()}"))
    else:
        shape = (len(made.pixels), *made.pixels[0].shape)
        connection.send(_Reply(dataclasses.replace(made, pixels=[]), shape))
        for clip in made.pixels:
            _send(connection.fileno(), clip.contiguous().numpy().data.cast("B"))


def _send(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def _receive(file: int, into: memoryview) -> None:
    while into:
        got = os.readv(file, [into])
        if not got:
            raise EOFError
        into = into[got:]
