"""The one guard of reading: whatever a source raises about one input costs that input alone.

No list of exception types decides: a reader or a library may raise anything about a file that nobody foresaw, `MemoryError`
too. What is known is the opposite, the few errors that tell of storage or of the machine; these stop the unit, so that the next
run tries it again. The price: a bug in a reader looks like a bad input at first. So its traceback is logged, and
`--max_bad_fraction` stops the job where it meets many.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator, Sequence

from pipeline.common.errors import BadEpisodeError, KilledError, MissingEpisodeError, ProjectError, StorageError
from pipeline.episodes.episode import Episode
from pipeline.sources.base import BadEpisode, Source, SourceShard

_log = logging.getLogger(__name__)
# What the system says of one file; all else that it says is about a disk, a mount, the memory or the process.
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
# Differs from run to run, and the same input should leave the same record.
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


def is_infrastructure_error(error: BaseException) -> bool:
    """Whether an error, or what caused it, tells of storage or of the machine and not of one input."""
    if isinstance(error, StorageError | KilledError):
        return True
    if _is_systems(error) and error.errno not in _ABOUT_ONE_FILE:  # type: ignore[attr-defined]
        return True
    return error.__cause__ is not None and is_infrastructure_error(error.__cause__)


def _is_systems(error: BaseException) -> bool:
    """Whether an error is the operating system's own; libraries have further kinds of `OSError`, some without a number."""
    return isinstance(error, OSError) and type(error).__module__ == "builtins" and error.errno is not None


def as_bad_episode(error: Exception, where: str) -> BadEpisode:
    """What stands in the place of an input about which `error` was raised.

    Args:
        error: As it was raised.
        where: The input, for the log.

    Raises:
        Exception: `error` itself, where it concerns more than this input.
    """
    if is_infrastructure_error(error):
        raise error
    if isinstance(error, BadEpisodeError):
        return BadEpisode.of(error)
    of_file = next((one for one in (error, error.__cause__) if one is not None and _is_systems(one)), None)
    if isinstance(of_file, OSError):
        return BadEpisode(f"it can't be opened: {os.strerror(of_file.errno or 0)}", MissingEpisodeError.kind)
    _log.warning("%s can't be used: %r", where, error, exc_info=error)
    said = str(error) if isinstance(error, ProjectError) else f"{type(error).__name__}: {error}".removesuffix(": ")
    return BadEpisode(_ADDRESS.sub("0x..", said).encode(errors="backslashreplace").decode())


def read_guarded(shard: SourceShard, sources: Sequence[Source]) -> Iterator[tuple[int, list[Episode | BadEpisode]]]:
    """`Source.read_together`, but what it raises about the file becomes the reason of each record that is still to come.

    Args:
        shard: The file.
        sources: Of one folder and kind.

    Raises:
        Exception: What concerns more than this file; see `is_infrastructure_error`.
    """
    last: int | None = None
    try:
        for position, items in sources[0].read_together(shard, sources):
            last = position
            yield position, items
            # An episode may be large: it is let go before the next one is read.
            del items
    except Exception as error:
        bad = as_bad_episode(error, f"{sources[0].folder}, {shard.file}")
        for position in lost_positions(shard, sources[0].divides_files, last):
            yield position, [bad for _ in sources]


def lost_positions(shard: SourceShard, divides_files: bool, last: int | None) -> Sequence[int]:
    """Positions of the records that a file should have had behind `last`; at least one, since something was lost.

    Args:
        shard: The file.
        divides_files: See `Source`.
        last: Position of the last record that was read; None where none was.
    """
    start = shard.first or 0 if divides_files else 0
    promised = range(start, start + (shard.records or 0)) if shard.only is None else shard.only
    left = [position for position in promised[: shard.take] if last is None or position > last]
    return left or [start if last is None else last + 1]
