"""A build backend that runs nothing of a package: its metadata comes from a file in its archive.

`pip download` asks for the metadata of a source archive, and setuptools would run the package's `setup.py` for it
(https://github.com/pypa/pip/issues/1884). With the parent of this folder first on Python's path and without build isolation,
pip uses this module instead. If a future pip finds another backend, the pinned SHA-256 of the archive still protects.
"""

import email
import shutil
import sys
from pathlib import Path

# pip uses this name of setuptools for a package without `pyproject.toml`.
__legacy__ = sys.modules[__name__]


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: object = None) -> str:
    """Copies the package's `PKG-INFO` to a `.dist-info` folder and returns its name, as in PEP 517."""
    package = Path("PKG-INFO")
    facts = email.message_from_string(package.read_text(encoding="utf-8"))
    folder = Path(metadata_directory) / f"{facts['Name'].replace('-', '_')}-{facts['Version']}.dist-info"
    folder.mkdir()
    shutil.copyfile(package, folder / "METADATA")
    return folder.name
