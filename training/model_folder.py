"""Where a model lies: a folder, a URL or the Hugging Face hub, brought to a local folder of its two parts and its recipe."""

import re
import tempfile
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pipeline import storage
from pipeline.errors import SourceError
from training.transformer_files import CONFIG

TOKENIZER = "tokenizer"
TRANSFORMER = "transformer"
RECIPE = "recipe.yaml"  # of this project's own models
_KINDS = (".json", ".safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate_model(path: str) -> Path:
    """A local folder with both parts of the model.

    Args:
        path: A local folder, a URL that fsspec opens (copied to local disk), or a hub id (cached by `huggingface_hub`). Only
            JSON and safetensors files are fetched, and the recipe where there is one.

    Raises:
        SourceError: There is no such model, or it lacks a part.
    """
    if not storage.is_local(path):
        folder = _fetched(path)
    elif storage.exists(path):
        folder = storage.local_path(path)
    else:
        folder = _downloaded(path)
    missing = [part for part in (TOKENIZER, TRANSFORMER) if not (folder / part).is_dir()]
    if missing:
        raise SourceError(
            f"{path} has no folder {' and no folder '.join(missing)}: "
            f"a model is a folder that holds {TOKENIZER}/ and {TRANSFORMER}/"
        )
    return folder


def locate_transformer(path: str) -> Path:
    """A local folder with the transformer of a model.

    Args:
        path: As for `locate_model`, or a local transformer folder itself.

    Raises:
        SourceError: There is no such model, or it lacks a part.
    """
    if storage.is_local(path) and (storage.local_path(path) / CONFIG).is_file():
        return storage.local_path(path)
    return locate_model(path) / TRANSFORMER


def _fetched(url: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ivideogpt-model-"))
    for part in (TOKENIZER, TRANSFORMER):
        for name in storage.list_files(storage.join(url, part)):
            if name.endswith(_KINDS):
                (folder / part).mkdir(exist_ok=True)
                storage.local_copy(storage.join(url, part, name), folder / part)
    if storage.exists(storage.join(url, RECIPE)):
        storage.local_copy(storage.join(url, RECIPE), folder)
    return folder


def _downloaded(name: str) -> Path:
    if not _HUB_ID.fullmatch(name):
        raise SourceError(f"{name} is neither a folder nor an id on the Hugging Face hub such as `owner/name`")
    wanted = [RECIPE, *(f"{part}/*{kind}" for part in (TOKENIZER, TRANSFORMER) for kind in _KINDS)]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SourceError(f"{name} is no local folder and could not be had from the Hugging Face hub: {reason}") from error
