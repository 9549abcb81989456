"""A build backend that runs nothing of a package: its metadata are the file that its archive holds.

`pip download` asks for a source archive's metadata, whatever for, and setuptools would run the package's `setup.py` to answer
(https://github.com/pypa/pip/issues/1884). With this folder's parent first on Python's path, and without build isolation, pip
asks this module instead. Should a pip ever find another backend, an archive's pinned SHA-256 still stands before it.
"""

import email
import shutil
import sys
from pathlib import Path

# The name under which pip asks for setuptools where a package has no `pyproject.toml`.
__legacy__ = sys.modules[__name__]


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: object = None) -> str:
    """Copy the package's own `PKG-INFO` to a `.dist-info` folder and name that; PEP 517 has the form of the call."""
    package = Path("PKG-INFO")
    facts = email.message_from_string(package.read_text(encoding="utf-8"))
    folder = Path(metadata_directory) / f"{facts['Name'].replace('-', '_')}-{facts['Version']}.dist-info"
    folder.mkdir()
    shutil.copyfile(package, folder / "METADATA")
    return folder.name
