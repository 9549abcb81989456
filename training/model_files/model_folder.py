"""Where a model lies: a folder, a URL or the Hugging Face hub, brought to a local folder of its two parts and its recipe."""

import atexit
import contextlib
from pathlib import Path

from pipeline import storage
from pipeline.errors import SourceError
from pipeline.locked_folder import locked_folder
from tokenize_offline import hub
from training.model_files.transformer_files import CONFIG

TOKENIZER = "tokenizer"
TRANSFORMER = "transformer"
# Of this project's own models: how clips were cut, and the seconds between their frames by data set.
RECIPE, CLIPS = "recipe.yaml", "clips.json"
_KINDS = (".json", ".safetensors")


def locate_model(path: str) -> Path:
    """A local folder with both parts of the model.

    Args:
        path: A local folder, a URL that fsspec opens (copied to local disk), or a hub id (cached by `huggingface_hub`). Only
            JSON and safetensors files are fetched, and what there is of recipe and clips.

    Raises:
        SourceError: There is no such model, or it lacks a part.
    """
    if not storage.is_local(path):
        folder = _fetched(path)
    elif storage.exists(path):
        folder = storage.local_path(path)
    else:
        parts = [f"{part}/*{kind}" for part in (TOKENIZER, TRANSFORMER) for kind in _KINDS]
        folder = Path(hub.fetch(path, [RECIPE, CLIPS, *parts]))
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
    # It lasts as long as the process, not longer: another model of equal size may come to the same URL.
    lasting = contextlib.ExitStack()
    folder = lasting.enter_context(locked_folder("ivideogpt-model-"))
    atexit.register(lasting.close)
    for part in (TOKENIZER, TRANSFORMER):
        for name in storage.list_files(storage.join(url, part)):
            if name.endswith(_KINDS):
                (folder / part).mkdir(exist_ok=True)
                storage.local_copy(storage.join(url, part, name), folder / part)
    for name in (RECIPE, CLIPS):
        if storage.exists(storage.join(url, name)):
            storage.local_copy(storage.join(url, name), folder)
    return folder
