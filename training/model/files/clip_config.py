"""Reads how a model's training clips were cut, so that clips for its predictions are cut the same way.

A model that was trained on adjacent frames predicts badly on every third one, without any error. So an exported model includes
a recipe that says how its token shards were made, whatever the training recipe said. That recipe takes precedence over the
defaults. A published checkpoint has no recipe: there the defaults apply.
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
# Keys that decide which frames a model sees and which episodes it never saw; the other keys are about making token shards.
_KINDS: dict[str, tuple[type, ...]] = {
    "stride": (str,),
    "length": (int, type(None)),
    "goal": (bool,),
    "held_out": (int, float),
}
log = logging.getLogger(__name__)


def clips_as_trained(folder: Path, clips: ClipsConfig, given: Mapping[str, Any], verbose: bool = True) -> ClipsConfig:
    """Returns a command's clips; what the user left open is as in the model's training.

    Args:
        folder: Folder of the model.
        clips: The command's section.
        given: Keys of the section that the user set.
        verbose: See `resolve_clips`.

    Raises:
        SourceError: The model's recipe can't be read.
        ConfigError: The model's recipe has an invalid value.
    """
    path = folder / RECIPE
    if not path.is_file():
        return clips
    return resolve_clips(clips, _section(path), given, f"{path} (the model's own recipe)", verbose)


def resolve_clips(
    clips: ClipsConfig, cut: Mapping[str, Any], given: Container[str], where: str, verbose: bool = True
) -> ClipsConfig:
    """Returns a recipe's clips; keys that decide which frames a clip has are as in existing clips.

    Args:
        clips: The recipe's section.
        cut: The section by which the existing clips were cut, as read from a file.
        given: Keys that keep their value in `clips`.
        where: Name of the file, for messages.
        verbose: Whether to log the changes.

    Raises:
        SourceError: A value has the wrong type.
        ConfigError: A value is invalid.
    """
    found = {name: value for name, value in cut.items() if name in _KINDS and name not in given}
    for name, value in found.items():
        if not isinstance(value, _KINDS[name]) or (isinstance(value, bool) and bool not in _KINDS[name]):
            raise SourceError(f"{where} has an invalid value {value!r} for clips.{name}: remove the file, or fix it")
    changed = {name: value for name, value in found.items() if value != getattr(clips, name)}
    if changed and verbose:
        log.info("as in %s: %s", where, ", ".join(f"clips.{name} {value}" for name, value in changed.items()))
    return dataclasses.replace(clips, **changed)


def _section(path: Path) -> dict[str, Any]:
    section = read_recipe(path).get("clips")
    if not isinstance(section, dict):
        raise SourceError(f"{path} is not a recipe with a section `clips`: remove it from the model, or fix it")
    return section


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads the recipe in a model's folder as it was written, section by section.

    Raises:
        SourceError: The file is too large, or not a recipe.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise SourceError(f"{path} is larger than a recipe can be ({_MAX_BYTES} bytes): remove it from the model")
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path} is not a recipe with a section `clips`: remove it from the model, or fix it") from error
