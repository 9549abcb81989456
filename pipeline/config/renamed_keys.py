"""Renamed recipe keys: accepts the old names in YAML files, on the command line, and in recipes that runs and models keep."""

import functools
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.common.errors import ConfigError

# Old name -> new name.
RENAMED_KEYS = {
    "tokenizer.still_weight": "tokenizer.static_patch_weight",
    "tokenizer.revive_every": "tokenizer.dead_code_reset_every",
}
_log = logging.getLogger(__name__)


def rename_section_keys(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a section's values under the new names of its keys.

    Raises:
        ConfigError: The old and the new name of a key have different values.
    """
    renamed = dict(values)
    for old, new in RENAMED_KEYS.items():
        old_name, new_name = (key.removeprefix(f"{section}.") for key in (old, new))
        if old_name in renamed:
            value = renamed.pop(old_name)
            _check_same(old, value, new, renamed.setdefault(new_name, value))
    return renamed


def rename_recipe_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe, a mapping of sections, with the new names of its keys; see `rename_section_keys`."""
    sections = {
        name: rename_section_keys(name, values) if isinstance(values, Mapping) else values for name, values in recipe.items()
    }
    return rename_section_keys("", sections)  # YAML files may hold `section.key: value` too


def rename_options(words: Sequence[str]) -> list[str]:
    """Returns the words of a command line with the new names of options.

    Raises:
        ConfigError: The old and the new name of an option have different values.
    """
    renamed = list(words)
    for old, new in RENAMED_KEYS.items():
        if old_values := _values_of(words, old):
            for old_value in old_values:
                for new_value in _values_of(words, new):
                    _check_same(f"--{old}", old_value, f"--{new}", new_value)
            _warn_once(old, new)
            renamed = [f"--{new}{word[len(old) + 2 :]}" if word.partition("=")[0] == f"--{old}" else word for word in renamed]
    return renamed


def _values_of(words: Sequence[str], key: str) -> list[str]:
    """The values that a command line gives for an option, as text."""
    following = [value for word, value in itertools.pairwise(words) if word == f"--{key}"]
    return following + [word.partition("=")[2] for word in words if word.startswith(f"--{key}=")]


def _parsed(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _check_same(old: str, old_value: Any, new: str, new_value: Any) -> None:
    if _parsed(old_value) != _parsed(new_value):
        raise ConfigError(f"{new} is {new_value}, but its old name {old} is {old_value}: remove {old}")
    _warn_once(old.removeprefix("--"), new.removeprefix("--"))


@functools.cache
def _warn_once(old: str, new: str) -> None:
    _log.warning("the recipe key %s is now called %s: rename it", old, new)
