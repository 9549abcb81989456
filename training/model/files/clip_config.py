"""How the clips were cut that a model learned from: what predicts with a model cuts its own likewise unless told otherwise.

A model that learned neighbouring frames and is shown every third one predicts badly and says nothing. So an exported model
carries a recipe that says how its token shards were made, whatever the recipe of the training said, and that counts before the
defaults. A published checkpoint carries none: there the defaults count.
"""

import dataclasses
import logging
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import SourceError
from pipeline.config.recipe import ClipsConfig
from training.model.files.locate import RECIPE

_MAX_BYTES = 1 << 20
# What decides which frames a model sees, and which episodes it never saw; the rest of the section is about making token shards.
_KINDS: dict[str, tuple[type, ...]] = {
    "stride": (str,),
    "length": (int, type(None)),
    "goal": (bool,),
    "held_out": (int, float),
}
log = logging.getLogger(__name__)


def clips_as_trained(folder: Path, clips: ClipsConfig, given: Mapping[str, Any], tells: bool = True) -> ClipsConfig:
    """A command's clips, with what its user left open as the model was trained.

    Args:
        folder: Of the model.
        clips: The command's section.
        given: Keys of it that the user gave.
        tells: See `resolve_clips`.

    Raises:
        SourceError: The model's recipe can't be read.
        ConfigError: It holds a value that can't be.
    """
    path = folder / RECIPE
    if not path.is_file():
        return clips
    return resolve_clips(clips, _section(path), given, f"{path} (the model's own recipe)", tells)


def resolve_clips(
    clips: ClipsConfig, cut: Mapping[str, Any], given: Container[str], where: str, tells: bool = True
) -> ClipsConfig:
    """A recipe's clips, with what decides which frames a clip has as it was when clips were cut.

    Args:
        clips: The recipe's section.
        cut: The section by which they were cut, as it was read from a file.
        given: Keys that stay as they are in `clips`.
        where: The file, for messages.
        tells: Whether this process is the one of several that logs what changes.

    Raises:
        SourceError: It has a value that is no such key's.
        ConfigError: It has a value that can't be.
    """
    found = {name: value for name, value in cut.items() if name in _KINDS and name not in given}
    for name, value in found.items():
        if not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and bool not in _KINDS[name]):
            raise SourceError(f"{where} has {value!r} for clips.{name}, which can't be: remove the file, or mend it")
    changed = {name: value for name, value in found.items() if value != getattr(clips, name)}
    if changed and tells:
        log.info("as in %s: %s", where, ", ".join(f"clips.{name} {value}" for name, value in changed.items()))
    return dataclasses.replace(clips, **changed)


def _section(path: Path) -> dict[str, Any]:
    section = read_recipe(path).get("clips")
    if not isinstance(section, dict):
        raise SourceError(f"{path} is no recipe with a section `clips`: take it out of the model, or mend it")
    return section


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in a model's folder as it was written, section by section.

    Raises:
        SourceError: It is too large, or no recipe.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise SourceError(f"{path} is larger than a recipe can be ({_MAX_BYTES} bytes): take it out of the model")
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path} is no recipe with a section `clips`: take it out of the model, or mend it") from error
