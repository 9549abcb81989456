"""Errors that a person reads: each names the thing that is wrong and what to do about it.

Every command turns a `ProjectError` into one line on stderr and an exit status; anything else is a bug and keeps its
traceback.
"""

from typing import ClassVar


class ProjectError(Exception):
    """Base of all errors whose message is meant for the user."""


class ConfigError(ProjectError):
    """A recipe or a command line asks for something that can't be."""


def require(condition: bool, message: str) -> None:
    """Raise a `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


class SourceError(ProjectError):
    """A source folder, file or spec can't be read as what it should be."""


class ShardError(ProjectError):
    """A shard, its record or an index is missing, damaged or disagrees with its record."""


class StorageError(ProjectError, OSError):
    """An object store can't be reached, or refuses; a missing file is Python's own `FileNotFoundError`."""


class KilledError(SourceError):
    """A process that reads for a worker was ended by somebody else, or can't be started; its input is not to blame."""


class ConflictError(ProjectError):
    """Something is there already and was made in another way; the message names both ways."""


class BadEpisodeError(Exception):
    """One episode can't be used; it is left out and listed with this reason, and the work goes on.

    Not a `ProjectError`: it never reaches the user as a failure of the command.

    Attributes:
        kind: `missing`: its file isn't there; `damaged`: its bytes aren't what they once were, so another copy may be sound;
            `unusable`: it is whole, but nothing that can be taken.
    """

    kind: ClassVar[str] = "unusable"


class DamagedEpisodeError(BadEpisodeError):
    """The bytes of an episode, or of what its file keeps it in, aren't what they once were."""

    kind = "damaged"


class MissingEpisodeError(BadEpisodeError):
    """The file of an episode that there should be isn't there."""

    kind = "missing"
