"""Versions of what runs: this project and the libraries that its results depend on."""

import importlib.metadata
from collections.abc import Iterable

PROJECT = "ivideogpt-pipeline"


def installed_version(name: str = PROJECT) -> str:
    """The version of an installed distribution; words for one that isn't, as this project itself when run from a checkout."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(run from a checkout, not installed)" if name == PROJECT else "(not installed)"


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Distribution -> `installed_version`."""
    return {name: installed_version(name) for name in names}
