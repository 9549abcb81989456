"""The child process that reads HDF5 for a worker (`pipeline.sources.hdf5.process`). It answers requests until its input ends.

It only runs the functions in `_FUNCTIONS`. Its memory is limited, because a damaged file may request any amount.
"""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.common.errors import BadEpisodeError, ProjectError
from pipeline.config.catalog import DatasetEntry
from pipeline.episodes.frames import FrameForm
from pipeline.sources.base import MAX_EPISODE_BYTES, SourceShard
from pipeline.sources.hdf5 import files as hdf5
from pipeline.sources.hdf5.files import MAX_ARRAY_BYTES
from pipeline.sources.hdf5.process import Hdf5Source, PipeClosed, pack, receive, send
from pipeline.sources.hdf5.robonet import RobonetSource
from pipeline.sources.hdf5.vp2 import Vp2Source, read_splits

# Two copies of an array, and two copies of the frames: as a list and as a message.
_MEMORY_BYTES = 2 * MAX_ARRAY_BYTES + 2 * MAX_EPISODE_BYTES
_SOURCES: dict[str, type[Hdf5Source]] = {source.kind: source for source in (RobonetSource, Vp2Source)}


def _episode(
    kind: str,
    folder: str,
    entry: Mapping[str, Any],
    form: Mapping[str, Any],
    shard: Mapping[str, Any],
    position: int,
    name: str,
) -> dict[str, Any]:
    source = _SOURCES[kind](folder, DatasetEntry(**entry), FrameForm(**form))
    return vars(source.read_here(SourceShard(**shard), position, name))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "episode": _episode,
    "group": hdf5.first_group,
    "top": hdf5.top_level,
    "splits": read_splits,
}


def _answer(request: Any) -> bytes:
    """Run a function and return its value or its error as a message.

    Known errors keep their type. An unexpected error also loses only the input, and its traceback goes to the log.
    """
    function, seconds, arguments = request
    hdf5.limit_calls(seconds)
    try:
        return pack({"value": _FUNCTIONS[function](*arguments)})
    except (BadEpisodeError, ProjectError) as error:
        return pack({"error": type(error).__name__, "message": str(error)})
    except Exception as error:
        traceback.print_exc()
        return pack({"error": BadEpisodeError.__name__, "message": f"{type(error).__name__}: {error}".removesuffix(": ")})


def main() -> None:
    """Answer the requests on standard input; answers go to the original standard output."""
    # The parent handles interrupts from the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, _MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    # Redirect standard output, so that nothing a library prints mixes with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    send(answers, pack("ready"))
    while True:
        try:
            request = receive(sys.stdin.buffer)
        except PipeClosed:
            return
        send(answers, _answer(request))


if __name__ == "__main__":
    main()
