"""Files of models on the Hugging Face hub, fetched and cached by the hub's own client."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pipeline.common.errors import SourceError

_DEFAULT = "~/.cache/ivideogpt"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fetch(name: str, patterns: Sequence[str]) -> str:
    """A local folder with the files of the model `name` that match `patterns`.

    Raises:
        SourceError: The name is no id, or the hub can't be reached or has no such model.
    """
    if not _HUB_ID.fullmatch(name):
        raise SourceError(f"{name} is neither a folder nor an id on the Hugging Face hub such as `owner/name`")
    try:
        return snapshot_download(name, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(f"{name} is no local folder and could not be had from the Hugging Face hub: {reason}") from error


def cache_folder(kind: str) -> Path:
    """The folder for copies of one kind: `$IVIDEOGPT_CACHE/{kind}`, or `~/.cache/ivideogpt/{kind}` where that isn't set."""
    return Path(os.environ.get("IVIDEOGPT_CACHE") or _DEFAULT).expanduser() / kind
