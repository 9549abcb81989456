"""Errors for users: each one names what is wrong and what to do about it.

Every command prints a `ProjectError` as one line on stderr and exits with a status; any other exception is a bug and keeps its
traceback.
"""

from typing import ClassVar


class ProjectError(Exception):
    """Base of all errors whose message is meant for the user."""


class ConfigError(ProjectError):
    """A recipe or a command line is invalid."""


def require(condition: bool, message: str) -> None:
    """Raises a `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


class SourceError(ProjectError):
    """A source folder, file or spec can't be read."""


class ShardError(ProjectError):
    """A shard, its manifest or an index is missing or damaged, or the shard differs from its manifest."""


class StorageError(ProjectError, OSError):
    """An object store can't be reached or refuses; a missing file is Python's `FileNotFoundError` instead."""


class KilledError(SourceError):
    """A process that reads for a worker was ended by somebody else, or can't be started; its input is not to blame."""


class ConflictError(ProjectError):
    """Existing output was made in a different way; the message names both ways."""


class BadEpisodeError(Exception):
    """One episode can't be used. The work goes on; the episode is skipped and listed with this reason.

    Not a `ProjectError`: the command does not fail with it.

    Attributes:
        kind: `missing`: the file does not exist; `damaged`: the bytes have changed, another copy may be intact; `unusable`: the
            episode is intact, but its form is not supported.
    """

    kind: ClassVar[str] = "unusable"


class DamagedEpisodeError(BadEpisodeError):
    """The bytes of an episode, or of the part of a file that holds it, are damaged."""

    kind = "damaged"


class MissingEpisodeError(BadEpisodeError):
    """The file of an expected episode does not exist."""

    kind = "missing"
