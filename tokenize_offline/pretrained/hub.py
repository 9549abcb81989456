"""Downloads model files from the Hugging Face hub with its own client, which caches them."""

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
    """Download the files of the model `name` that match `patterns`; returns the local folder.

    Raises:
        SourceError: The name is not a hub id, the hub can't be reached, or it has no such model.
    """
    if not _HUB_ID.fullmatch(name):
        raise SourceError(f"{name} is neither a folder nor a Hugging Face hub id such as `owner/name`")
    try:
        return snapshot_download(name, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(
            f"{name} is not a local folder, and downloading it from the Hugging Face hub failed: {reason}"
        ) from error


def cache_folder(kind: str) -> Path:
    """Cache folder for one kind of files: `$IVIDEOGPT_CACHE/{kind}`, by default `~/.cache/ivideogpt/{kind}`."""
    return Path(os.environ.get("IVIDEOGPT_CACHE") or _DEFAULT).expanduser() / kind
