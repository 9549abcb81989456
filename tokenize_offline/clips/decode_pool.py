"""Processes that read episodes ahead of the model; one that dies takes nothing with it but the episode it held.

Image decoders are C code over hostile input: they may crash, or be killed for their memory. Each process holds one episode
at a time, so whatever kills it is known. Pixels come back through a socket straight into the tensor that the model will see.
The price is that copy, about 1 ms for an episode of eight clips, and the start of the processes: they are forked from one
server that has imported what they need.
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
# How often an episode may kill its reader before it is left out: once may be bad luck.
_LIVES = 2
# No episode takes that long; a decoder in an endless loop does, and is then killed.
_PATIENCE_SECONDS = 600.0
_FAREWELL_SECONDS = 5.0

Read = Callable[[Episode, ClipsConfig, int, float, int], EpisodeClips]


@dataclass(frozen=True)
class _Request:
    episode: Episode
    views: int
    held_out_share: float


@dataclass(frozen=True)
class _Reply:
    """What a reader sends before the pixels: the clips without them, and their shape."""

    clips: EpisodeClips
    shape: tuple[int, ...]


class _ReaderDiedError(Exception):
    """The process is gone; the message says how it ended."""


def prepare_readers() -> None:
    """Start the server that readers are forked from, which imports torch meanwhile; call it before other slow beginnings."""
    forkserver.ensure_running()


class ReaderPool:
    """Reads episodes in processes. Use it as a context manager, and `read` from as many threads as it has processes."""

    def __init__(self, clips: ClipsConfig, side: int, size: int, read: Read = read_clips) -> None:
        """Prepare; processes start when they are first needed.

        Args:
            clips: Resolved, see `clips.resolve_clips`.
            side: S in pixels.
            size: Processes.
            read: What they run: `read_clips`, or another function of a module, with its arguments.
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
                reader.dismiss()

    def read(self, episode: Episode, views: int, held_out_share: float) -> EpisodeClips:
        """The clips of an episode, see `read_clips`.

        Raises:
            BadEpisodeError: As `read_clips` says, or it killed its reader twice.
            ProjectError: As `read_clips` says, or readers can't be started.
        """
        request = _Request(episode, views, held_out_share)
        reader = self._idle.get()
        try:
            for _ in range(_LIVES):
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
        raise BadEpisodeError(f"killed its reader process {_LIVES} times")

    def _start(self) -> "_Reader":
        with self._starting:
            return _Reader(*self._work)


class _Reader:
    """One process, from the side of its parent."""

    def __init__(self, clips: ClipsConfig, side: int, read: Read) -> None:
        self._connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, clips, side, read), name="reader", daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._connection.recv()
        except (EOFError, OSError) as error:
            raise ProjectError(
                f"a reader process ended with {self._ending()} before it could start: see its message above, and whether this "
                "machine has the memory for another process"
            ) from error

    def ask(self, request: _Request) -> EpisodeClips:
        try:
            self._connection.send(request)
            if not self._connection.poll(_PATIENCE_SECONDS):
                self._process.kill()
                raise _ReaderDiedError(f"no answer in {_PATIENCE_SECONDS:.0f} s")
            reply = self._connection.recv()
            if isinstance(reply, BaseException):
                raise reply
            pixels = torch.empty(reply.shape)
            _receive(self._connection.fileno(), pixels.numpy().data.cast("B"))
        except (EOFError, OSError) as error:
            self._connection.close()
            raise _ReaderDiedError(self._ending()) from error
        return dataclasses.replace(reply.clips, pixels=list(pixels))

    def dismiss(self) -> None:
        self._connection.close()
        self._process.join(_FAREWELL_SECONDS)
        self._process.kill()

    def _ending(self) -> str:
        self._process.join(_FAREWELL_SECONDS)
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"


def _serve(connection: Connection, clips: ClipsConfig, side: int, read: Read) -> None:
    """The process: answers requests until its parent closes the connection or is gone."""
    follow_parent()
    # Parallelism is across episodes, and the model needs the cores.
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
