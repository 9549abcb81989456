"""A folder in `TMPDIR` for all that a run on this machine keeps there, so that nothing stays of it.

Beam, and what it is made of, make temporary files and folders under names of their own, which a run that is killed leaves
behind and which nobody could tell from those of a living one. So a run has one folder, everything of it lies there, and the
next run clears those of killed ones. The price: `TMPDIR` is another one meanwhile, for this process and those that it starts.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.temp_dirs import locked_folder


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is `TMPDIR` within the block and gone after it; those of killed runs beside it are cleared first."""
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
