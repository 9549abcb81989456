"""Versions of this project and of the libraries that its results depend on."""

import importlib.metadata
from collections.abc import Iterable

PROJECT = "ivideogpt-pipeline"


def installed_version(name: str = PROJECT) -> str:
    """Returns the version of a distribution, or says that it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(run from a checkout, not installed)" if name == PROJECT else "(not installed)"


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Returns distribution -> `installed_version`."""
    return {name: installed_version(name) for name in names}
