"""Where copies of files from object stores are kept on this machine.

Token shards of a whole mixture are tens of gigabytes, more than the home folders of many clusters hold. So the place can be
named by the variable IVIDEOGPT_CACHE of the environment, which reaches every process of every launcher.
"""

import os
from pathlib import Path

_DEFAULT = "~/.cache/ivideogpt"


def cache_folder(kind: str) -> Path:
    """The folder for copies of one kind: `$IVIDEOGPT_CACHE/{kind}`, or `~/.cache/ivideogpt/{kind}` where that isn't set."""
    return Path(os.environ.get("IVIDEOGPT_CACHE") or _DEFAULT).expanduser() / kind
