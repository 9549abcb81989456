"""Finds a model in a folder, at a URL or on the Hugging Face hub, and copies it to a local folder.

The folder of a training run stands for the model that it exported. If nothing is found, the error says where it looked, and
names models in subfolders.
"""

import atexit
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.common import storage
from pipeline.common.errors import SourceError
from pipeline.common.temp_dirs import locked_folder
from tokenize_offline.pretrained import hub
from tokenize_offline.pretrained.weight_files import refuse_pickles
from tokenize_offline.tokenizer.loading import RUN_MODEL, SUBFOLDER
from training.model.files.transformer import CONFIG, WEIGHTS

TOKENIZER = SUBFOLDER
TRANSFORMER = "transformer"
# Only in this project's models: how clips were cut, and the seconds between their frames by data set.
RECIPE, CLIPS = "recipe.yaml", "clips.json"
_KINDS = (".json", ".safetensors")
_NAMED = 4


def locate_model(path: str) -> Path:
    """Returns a local folder with both parts of the model.

    Args:
        path: A local folder, a URL that fsspec opens (copied to local disk), or a hub id (cached by `huggingface_hub`); of the
            model, or of the run with its `model/`. Only JSON and safetensors files are fetched, and recipe and clips if they
            exist.

    Raises:
        SourceError: There is no such model, or a part is missing.
    """
    if not storage.exists(path):
        parts = [f"{part}/*{kind}" for part in (TOKENIZER, TRANSFORMER) for kind in _KINDS]
        path = hub.fetch(path, [RECIPE, CLIPS, *parts])
    found = _with_parts(path, (TOKENIZER, TRANSFORMER))
    return storage.local_path(found) if storage.is_local(found) else _fetched(found, (TOKENIZER, TRANSFORMER))


def locate_transformer(path: str) -> Path:
    """Returns a local folder with the transformer of a model.

    Args:
        path: As for `locate_model`, or a transformer folder itself; the model may lack its tokenizer.

    Raises:
        SourceError: There is no such transformer.
    """
    if not storage.exists(path):
        path = hub.fetch(path, [f"{place}*{kind}" for place in ("", f"{TRANSFORMER}/") for kind in _KINDS])
    if storage.exists(storage.join(path, CONFIG)):
        return storage.local_path(path) if storage.is_local(path) else _copied(path, _new_folder())
    found = _with_parts(path, (TRANSFORMER,))
    folder = storage.local_path(found) if storage.is_local(found) else _fetched(found, (TRANSFORMER,))
    return folder / TRANSFORMER


def _with_parts(path: str, parts: Sequence[str]) -> str:
    """Returns the folder at `path`, or the exported model of the run there, if it has all parts."""
    if storage.is_local(path) and storage.local_path(path).is_file():
        refuse_pickles("", [path], WEIGHTS)
        raise SourceError(f"{path} is a file: a model is a folder that holds {TOKENIZER}/ and {TRANSFORMER}/")
    exported = storage.join(path, RUN_MODEL)
    missing = {place: _missing(place, parts) for place in (path, exported)}
    for place, lacking in missing.items():
        if not lacking:
            return place
    # The folder with fewer missing parts is probably the one that was meant.
    nearest = exported if len(missing[exported]) < len(missing[path]) else path
    lacks = f"{nearest} has no folder {' and no folder '.join(missing[nearest])}"
    if missing[nearest] == [TOKENIZER]:
        raise SourceError(
            f"{lacks}: its run was trained without --tokenizer. Run the training command again with it, which exports the "
            "model again, or copy the tokenizer of the token shards there"
        )
    raise SourceError(f"{lacks}{_advice(path, exported, parts)}")


def _missing(folder: str, parts: Sequence[str]) -> list[str]:
    held = storage.list_folders(folder) if storage.exists(folder) else []
    return [part for part in parts if part not in held]


def _advice(path: str, exported: str, parts: Sequence[str]) -> str:
    below = [place for place in _below(path) if not _missing(place, parts)]
    if below:
        more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
        return f", but there are models below it: name one of {', '.join(below[:_NAMED])}{more}"
    wanted = " and ".join(f"{part}/" for part in parts)
    return f": a model is a folder that holds {wanted}, or a run with such a {RUN_MODEL}/ (looked for in {path} and {exported})"


def _below(path: str) -> Iterator[str]:
    for name in storage.list_folders(path):
        yield storage.join(path, name)
        yield storage.join(path, name, RUN_MODEL)


def _fetched(url: str, parts: Sequence[str]) -> Path:
    folder = _new_folder()
    for part in parts:
        (folder / part).mkdir()
        _copied(storage.join(url, part), folder / part)
    for name in (RECIPE, CLIPS):
        if storage.exists(storage.join(url, name)):
            storage.local_copy(storage.join(url, name), folder)
    return folder


def _copied(url: str, folder: Path) -> Path:
    for name in storage.list_files(url):
        if name.endswith(_KINDS):
            storage.local_copy(storage.join(url, name), folder)
    return folder


def _new_folder() -> Path:
    # Removed when the process ends: another model of equal size may appear at the same URL.
    lasting = contextlib.ExitStack()
    folder = lasting.enter_context(locked_folder("ivideogpt-model-"))
    atexit.register(lasting.close)
    return folder
