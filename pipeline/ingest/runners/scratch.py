"""A temporary folder for everything that a run on this machine writes to `TMPDIR`.

Beam and its dependencies create temporary files under their own names. A killed run would leave them behind, and nobody could
tell them from those of a live run. So each run has one locked folder, and the next run removes the folders of killed runs. The
price: `TMPDIR` changes during the run, for this process and its children.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.temp_dirs import locked_folder


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder that is `TMPDIR` inside the block and is removed after it; first remove the folders of killed runs."""
    parent, environment = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with locked_folder("ivideogpt-run-") as folder:
        try:
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            yield folder
        finally:
            tempfile.tempdir = parent
            del os.environ["TMPDIR"]
            if environment is not None:
                os.environ["TMPDIR"] = environment
