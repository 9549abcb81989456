"""Guards reading: an error about one input loses only that input.

Readers and libraries may raise any exception about an unexpected file, even `MemoryError`, so no list of exception types
decides. The reverse is known: a few errors concern storage or the machine. They stop the unit, and the next run tries it again.
The price: a bug in a reader looks like a bad input. So its traceback is logged, and `--max_bad_fraction` stops the job if there
are many.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import TypeGuard

from pipeline.common.errors import BadEpisodeError, KilledError, MissingEpisodeError, ProjectError, StorageError
from pipeline.episodes.episode import Episode
from pipeline.sources.base import BadEpisode, Source, SourceShard

_log = logging.getLogger(__name__)
# Error numbers of the operating system that concern one file; all others concern a disk, a mount, the memory or the process.
_ABOUT_ONE_FILE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EINVAL,
    errno.ENXIO,
    errno.EILSEQ,
)
# Addresses differ between runs, but the same input must give the same manifest.
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


def is_infrastructure_error(error: BaseException) -> bool:
    """Whether an error, or its cause, concerns storage or the machine instead of one input."""
    if isinstance(error, StorageError | KilledError):
        return True
    if _is_system_error(error) and error.errno not in _ABOUT_ONE_FILE:
        return True
    return error.__cause__ is not None and is_infrastructure_error(error.__cause__)


def _is_system_error(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether an error comes from the operating system; libraries raise other kinds of `OSError`, some without a number."""
    return isinstance(error, OSError) and type(error).__module__ == "builtins" and error.errno is not None


def as_bad_episode(error: Exception, where: str) -> BadEpisode:
    """Return the replacement of an input that raised `error`.

    Args:
        error: The error.
        where: Name of the input, for the log.

    Raises:
        Exception: `error` itself, if it concerns more than this input.
    """
    if is_infrastructure_error(error):
        raise error
    if isinstance(error, BadEpisodeError):
        return BadEpisode.of(error)
    if (file_error := next(filter(_is_system_error, (error, error.__cause__)), None)) is not None:
        return BadEpisode(f"it can't be opened: {os.strerror(file_error.errno or 0)}", MissingEpisodeError.kind)
    _log.warning("%s can't be used: %r", where, error, exc_info=error)
    reason = str(error) if isinstance(error, ProjectError) else f"{type(error).__name__}: {error}".removesuffix(": ")
    return BadEpisode(_ADDRESS.sub("0x..", reason).encode(errors="backslashreplace").decode())


def read_guarded(shard: SourceShard, sources: Sequence[Source]) -> Iterator[tuple[int, list[Episode | BadEpisode]]]:
    """Run `Source.read_together`; an error about the file becomes the reason of each remaining record.

    Args:
        shard: The file.
        sources: Sources of one folder and kind.

    Raises:
        Exception: An error that concerns more than this file; see `is_infrastructure_error`.
    """
    last: int | None = None
    try:
        for position, items in sources[0].read_together(shard, sources):
            last = position
            yield position, items
            # Free the episode before the next one is read: it may be large.
            del items
    except Exception as error:
        bad = as_bad_episode(error, f"{sources[0].folder}, {shard.file}")
        for position in lost_positions(shard, sources[0].divides_files, last):
            yield position, [bad for _ in sources]


def lost_positions(shard: SourceShard, divides_files: bool, last: int | None) -> Sequence[int]:
    """Return the positions of the records that a file should have after `last`; at least one, because something was lost.

    Args:
        shard: The file.
        divides_files: See `Source`.
        last: Position of the last record that was read; None if none was read.
    """
    start = shard.first or 0 if divides_files else 0
    expected = range(start, start + (shard.records or 0)) if shard.only is None else shard.only
    left = [position for position in expected[: shard.take] if last is None or position > last]
    return left or [start if last is None else last + 1]
