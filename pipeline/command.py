"""What all commands share: a parser over the recipe, overrides by dotted name, and errors as one line.

Built on jsonargparse, which fills the recipe's dataclasses from `--config RECIPE` and `--section.key VALUE`; added here
is the nearest valid key for one that is not known.
"""

import dataclasses
import difflib
import logging
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

import jsonargparse

from pipeline.errors import ConfigError, ProjectError
from pipeline.recipe import Recipe

# A recipe may lie on an object store.
jsonargparse.set_parsing_settings(config_read_mode_fsspec_enabled=True)

_UNKNOWN = (
    re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'"),
    re.compile(r"Option '(?P<key>[^']+)' is not accepted"),
    re.compile(r"unrecognized arguments: (?P<key>\S+)"),
)


class CommandParser(jsonargparse.ArgumentParser):
    """A jsonargparse parser that names the nearest valid key when it meets one it doesn't know.

    Attributes:
        unhelped: Groups of options that `--help` doesn't list.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        """See `jsonargparse.ArgumentParser`."""
        self.unhelped: list[Any] = []
        super().__init__(*args, **named)

    def format_help(self, *args: Any, **named: Any) -> str:
        """The text of `--help`."""
        every = self._action_groups
        self._action_groups = [group for group in every if group not in self.unhelped]
        try:
            return str(super().format_help(*args, **named))
        finally:
            self._action_groups = every

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, with a suggestion where a key is unknown, and exit with status 2."""
        print(f"{self.prog}: error: {message}{self._suggestion(message)}", file=sys.stderr)
        print(f"{self.prog}: see `{self.prog} --help`", file=sys.stderr)
        sys.exit(2)

    def _check_value_key(self, action: Any, value: Any, key: str, *rest: Any, **named: Any) -> Any:
        # jsonargparse takes a lone value for an option of several from the command line, and from YAML it should too.
        if action.nargs == "+" and not isinstance(value, (list, type(None))):
            value = [value]
        return super()._check_value_key(action, value, key, *rest, **named)

    def _suggestion(self, message: str) -> str:
        for pattern in _UNKNOWN:
            match = pattern.search(message)
            if match is None:
                continue
            group = match.groupdict().get("group")
            key = match["key"].lstrip("-").split("=")[0]
            unknown = f"{group}.{key}" if group else key
            known = [name for action in self._actions for name in _dotted_names(action)]
            nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
            return f" (did you mean `{nearest[0]}`?)" if nearest else ""
        return ""


def _dotted_names(action: Any) -> list[str]:
    return [option.lstrip("-") for option in action.option_strings if option.startswith("--")]


def recipe_parser(prog: str, description: str, helped: Collection[str] | None = None) -> CommandParser:
    """A parser with `--config`, `--print_config` and one option for every key of the recipe.

    Args:
        prog: Name of the command.
        description: What it does.
        helped: The sections of the recipe whose keys `--help` lists, those that matter to the command; None lists all.
    """
    parser = CommandParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A recipe (YAML); later options override it.")
    for section in dataclasses.fields(Recipe):
        parser.add_class_arguments(section.default_factory, section.name)
        if helped is not None and section.name not in helped:
            parser.unhelped.append((parser.groups or {})[section.name])
    return parser


def add_section_folder(parser: CommandParser, section: str, help: str, required: bool = True) -> None:
    """Let `--{section} DIR` name a folder (or URL, or hub id) beside the section's own keys.

    jsonargparse keeps `--{section}` for the section as a whole, so the option is `--{section}_dir` within the parser, and
    `parse_recipe` takes the short spelling for it. Its value is `{section}_dir` of the namespace.
    """
    parser.add_argument(f"--{section}_dir", metavar="DIR", type=str, required=required, help=f"{help} Short: --{section} DIR.")


def _spelled_out(parser: CommandParser, arguments: Sequence[str]) -> list[str]:
    known = {name for action in parser._actions for name in _dotted_names(action)}
    folders = {f"--{section.name}" for section in dataclasses.fields(Recipe) if f"{section.name}_dir" in known}
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        spelled.append(f"{name}_dir{equals}{value}" if name in folders else argument)
    return spelled


def parse_recipe(parser: CommandParser, arguments: Sequence[str] | None = None) -> tuple[Recipe, Any]:
    """Parse a command line into its recipe and the namespace of the command's own options.

    Raises:
        ConfigError: A section's own check failed.
    """
    try:
        spelled = _spelled_out(parser, sys.argv[1:] if arguments is None else arguments)
        namespace = parser.instantiate(parser.parse_args(spelled))
    except ConfigError as error:
        parser.error(str(error))
    sections = {section.name: namespace.pop(section.name) for section in dataclasses.fields(Recipe)}
    return Recipe(**sections), namespace


def given_value(parser: CommandParser, key: str, arguments: Sequence[str] | None = None) -> Any:
    """What the command line or its `--config` file gives for a dotted key of the recipe; None where neither does."""
    spelled = _spelled_out(parser, sys.argv[1:] if arguments is None else arguments)
    return parser.parse_args(spelled, defaults=False).get(key)


def run_command(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command's body; a `ProjectError` becomes one line on stderr and exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for library in ("aiobotocore", "botocore"):  # They tell of every login.
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        return main(arguments)
    except ProjectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"error: {error.filename}: {error.strerror}. Let this user have it, and run the command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
