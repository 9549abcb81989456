"""Errors of command lines and recipes in plain words.

argparse and jsonargparse report errors as Python types and internal keys. This module translates their messages: the option as
it is typed, the given value, and what is valid.
"""

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

# Smallest similarity (difflib's ratio) of a suggested name.
_SIMILARITY = 0.7
_WORDS: Mapping[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
}
_GIVEN = re.compile(r"(?:Got value|Given value): (?P<value>.*?)(?:\n|$)", re.DOTALL)
_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"(?: element \d+)?:\s*(?P<reason>.*)', re.DOTALL)


@dataclass(frozen=True)
class Option:
    """An option as users type it.

    Attributes:
        name: Name with dashes; without them for a positional argument.
        key: The parser's name for it.
        hint: Its Python type; None if it takes no value.
        choices: Valid values; empty if the type decides.
    """

    name: str
    key: str
    hint: Any = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """All options of a command.

    Attributes:
        known: All options.
        recipes: Recipes given by `--config`.
        given: The words of the command line.
    """

    known: Sequence[Option]
    recipes: Sequence[str] = ()
    given: Sequence[str] = field(default=())

    def by_key(self, key: str) -> Option | None:
        """Returns the option that the parser calls `key`."""
        return next((option for option in self.known if option.key == key), None)

    def typed(self, key: str) -> str:
        """Returns an option as it is typed, or the recipe's file and key if the command line does not name the option."""
        option = self.by_key(key)
        name = option.name if option else f"--{key}"
        names = {name, f"--{key}"}
        on_command_line = any(word.split("=", 1)[0] in names for word in self.given)
        if self.recipes and not on_command_line:
            return f"{', '.join(self.recipes)}: {key}"
        return name

    def nearest(self, name: str) -> str:
        """Returns ` (did you mean OPTION?)` for the known option most like `name`; empty if none is similar."""
        typed_name = name.lstrip("-")
        known = {option.name.lstrip("-"): option.name for option in self.known}
        found = difflib.get_close_matches(typed_name, known, n=1, cutoff=_SIMILARITY)
        return f" (did you mean {known[found[0]]}?)" if found else ""


def describe_type(hint: Any, many: bool = False) -> str:
    """Describes the valid values of a type in plain words.

    Args:
        hint: A type as in an annotation.
        many: Describe several such values.
    """
    if hint in _WORDS:
        return _WORDS[hint][many]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        # A user who gave a value need not know that it is optional.
        return " or ".join(describe_type(part, many) for part in inner if part is not type(None))
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of names to {describe_type(inner[1], many=True)}, such as {{name: value}}"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list of {describe_type(inner[0], many=True)} in square brackets" if inner else "a list"
    return "a section of keys"


def explain(message: str, options: Options) -> str:
    """Returns a parser's message in plain words, on one line."""
    for pattern, translate in _PATTERNS:
        if match := pattern.search(message):
            message = translate(match, options)
            break
    return " ".join(message.split())


def _choice(match: re.Match[str], options: Options) -> str:
    values = match["choices"].replace("'", "")
    return f"{match['name'].split('/')[-1]}: {match['value']!r} is not one of {values}"


def _count(match: re.Match[str], options: Options) -> str:
    words = {"one argument": "a value", "at least one argument": "one value or more"}
    count = words.get(match["count"], match["count"].replace("arguments", "values"))
    return f"{_spelled(match['name'], options)} needs {count} after it"


def _spelled(name: str, options: Options) -> str:
    """Returns the option as it is typed for argparse's `--name/--name+` or key."""
    first = name.split("/")[0]
    option = options.by_key(first.lstrip("-"))
    return option.name if option else first


def _missing(match: re.Match[str], options: Options) -> str:
    names = [_spelled(key.strip(), options) for key in match["keys"].split(",")]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing"


def _unrecognized(match: re.Match[str], options: Options) -> str:
    word = match["words"].strip().split(" ")[0]
    first = word.split("=", 1)[0]
    if not first.startswith("-"):
        return f"unexpected {word!r}: it belongs to no option"
    return f"there is no option {first}{options.nearest(first)}"


def _native(match: re.Match[str], options: Options) -> str:
    kinds = {"int": int, "float": float}
    expected = describe_type(kinds[match["kind"]]) if match["kind"] in kinds else f"a {match['kind'].strip('_')}"
    return f"{_spelled(match['name'], options)}: {match['value']!r} is not {expected}"


def _unknown_key(match: re.Match[str], options: Options) -> str:
    group = match.groupdict().get("group")
    key = f"{group}.{match['key']}" if group else match["key"].lstrip("-").split("=")[0]
    place = f"{', '.join(options.recipes)}: " if options.recipes else ""
    known = {option.key for option in options.known}
    found = difflib.get_close_matches(key, known, n=1, cutoff=_SIMILARITY)
    return f"{place}there is no key {key}" + (f" (did you mean {found[0]}?)" if found else "")


def _bad_value(match: re.Match[str], options: Options) -> str:
    key, reason = match["key"], match["reason"]
    name, option = options.typed(key), options.by_key(key)
    if "File does not exist" in reason:
        return f"{name}: there is no file {reason.rpartition(': ')[2].strip()}"
    given = _GIVEN.search(reason)
    if given is None:
        choice = re.search(r"^(?P<value>.+) not among choices", reason)
        if choice is None or option is None:
            if "Unable to load config" in reason or option is None or option.hint is None:
                return f"{name}: {_unquoted(reason)} can't be read as a section of keys"
            return f"{name}: {' '.join(reason.split())}"
        return f"{name}: {choice['value']} is not one of {', '.join(option.choices)}"
    expected = "valid"
    if option is not None:
        expected = "one of " + ", ".join(option.choices) if option.choices else describe_type(option.hint)
    return f"{name}: {given['value']!r} is not {expected}"


def _unquoted(reason: str) -> str:
    found = re.search(r"Unable to load config (?P<value>'.*?'|\".*?\"|\S+)", reason)
    return found["value"] if found else " ".join(reason.split())


def _broken_recipe(match: re.Match[str], options: Options) -> str:
    place = ", ".join(options.recipes) or "the recipe"
    reason = " ".join(match["reason"].replace('in "<unicode string>",', "at").split())
    return f"{place} is not valid YAML: {reason}"


_PATTERNS = (
    (re.compile(r"argument (?P<name>\S+): invalid choice: '?(?P<value>.*?)'? \(choose from (?P<choices>.*)\)"), _choice),
    (re.compile(r"argument (?P<name>\S+): expected (?P<count>.+ arguments?)"), _count),
    (re.compile(r"argument (?P<name>\S+): invalid (?P<kind>\w+) value: '(?P<value>.*)'"), _native),
    (re.compile(r"the following arguments are required: (?P<keys>.*)"), _missing),
    (re.compile(r"unrecognized arguments: (?P<words>.*)"), _unrecognized),
    (re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'"), _unknown_key),
    (re.compile(r"Option '(?P<key>[^']+)' is not accepted"), _unknown_key),
    (re.compile(r"Problems parsing config: (?P<reason>.*)", re.DOTALL), _broken_recipe),
    (_KEY, _bad_value),
)
