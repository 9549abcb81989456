"""What all commands share: a parser with one option per recipe key, and errors as one line.

jsonargparse fills the recipe's dataclasses from `--config RECIPE` and `--section.key VALUE`.
"""

import argparse
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
from jsonargparse import DefaultHelpFormatter, Namespace

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ProjectError
from pipeline.common.path_errors import explain_path_error
from pipeline.common.versions import installed_version
from pipeline.config.catalog import CONFIGS
from pipeline.config.cli_errors import Option, Options, explain
from pipeline.config.recipe import Recipe
from pipeline.config.renamed_keys import rename_options, rename_recipe_keys, rename_section_keys
from pipeline.processes.child_processes import end_with_launcher
from pipeline.processes.interruption import Interrupted, Interruption

# Recipes may be on an object store.
jsonargparse.set_parsing_settings(config_read_mode_fsspec_enabled=True)


class _PlainHelp(DefaultHelpFormatter):
    """Formats help without Python types and without empty defaults."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        if default is None or default is False or default in ({}, argparse.SUPPRESS) or not action.option_strings:
            return text
        return f"{text} (default: {' '.join(map(str, default)) if isinstance(default, list | tuple) else default})"


class CommandParser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose messages name options as they are typed and types in plain words.

    Adds `--version` and `--json` to every command.

    Attributes:
        unhelped: Option groups that `--help` does not list.
        folders: Options that users type as `--NAME` and the parser calls `--NAME_dir`.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        """Creates the parser; see `jsonargparse.ArgumentParser`."""
        self.unhelped: list[argparse._ArgumentGroup] = []
        self.folders: set[str] = set()
        self._given: list[str] = []
        self._words: list[str] = []
        self._user_values: Namespace | None = None
        super().__init__(*args, **{"formatter_class": _PlainHelp, "allow_abbrev": False, **named})
        self.add_argument(
            "--version", action="version", version=f"{self.prog} {installed_version()}", help="Print the version."
        )
        self.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="Print results as JSON; the default if stdout is not a terminal.",
        )

    def parse_args(  # type: ignore[override]  # as jsonargparse has it, not argparse
        self, args: Sequence[str] | None = None, *rest: Any, **named: Any
    ) -> Any:
        """Parses a command line; see `jsonargparse.ArgumentParser`."""
        self._given = rename_options(sys.argv[1:] if args is None else args)
        self._words, self._user_values = _with_recipe_files(_with_parser_names(self, self._given)), None
        return super().parse_args(self._words, *rest, **named)

    def given(self, section: str) -> dict[str, Any]:
        """Returns the keys of a recipe section that the command line or its `--config` files set: key -> value."""
        if self._user_values is None:
            self._user_values = super().parse_args(self._words, defaults=False)
        values = self._user_values.get(section)
        return dict(vars(values)) if values is not None else {}

    def format_help(self, *args: Any, **named: Any) -> str:
        """Returns the text of `--help`."""
        every, renamed = self._action_groups, [action for action in self._actions if action.dest[:-4] in self.folders]
        self._action_groups = [group for group in every if group not in self.unhelped]
        try:
            for action in renamed:
                action.option_strings = [f"--{action.dest[:-4]}"]
            return str(super().format_help(*args, **named))
        finally:
            self._action_groups = every
            for action in renamed:
                action.option_strings = [f"--{action.dest}"]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the error in plain words and exits with status 2."""
        print(f"{self.prog}: error: {explain(message, self._options())}", file=sys.stderr)
        print(f"{self.prog}: see `{self.prog} --help`", file=sys.stderr)
        sys.exit(2)

    def _options(self) -> Options:
        known = []
        for action in self._actions:
            names = [name for name in action.option_strings if name.startswith("--")]
            name = f"--{action.dest[:-4]}" if action.dest[:-4] in self.folders else names[0] if names else action.dest
            hint = getattr(action, "_typehint", None) or action.type or (None if action.nargs == 0 else str)
            known.append(Option(name, action.dest, hint, tuple(map(str, action.choices or ()))))
        recipes = [
            self._given[place + 1] if word == "--config" else word.partition("=")[2]
            for place, word in enumerate(self._given)
            if word.startswith("--config=") or (word == "--config" and place + 1 < len(self._given))
        ]
        return Options(known, recipes, self._given)

    def _apply_actions(self, cfg: Any, parent_key: str = "", *rest: Any, **named: Any) -> Any:
        if isinstance(cfg, dict):
            cfg = rename_section_keys(parent_key, cfg) if parent_key else rename_recipe_keys(cfg)
        return super()._apply_actions(cfg, parent_key, *rest, **named)

    def _check_value_key(self, action: Any, value: Any, key: str, *rest: Any, **named: Any) -> Any:
        # jsonargparse accepts a single value for a list option on the command line only; accept it in YAML too.
        if action.nargs == "+" and not isinstance(value, (list, type(None))):
            value = [value]
        return super()._check_value_key(action, value, key, *rest, **named)


def packaged_recipes() -> list[str]:
    """Returns the names of the packaged recipes, for `--config NAME`."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if _is_recipe(path))


def _is_recipe(path: Path) -> bool:
    """Whether a file of `configs/` is a recipe, not a table of the catalog."""
    sections = {section.name for section in dataclasses.fields(Recipe)}
    text = path.read_text(encoding="utf-8")
    return any(line.partition(":")[0] in sections for line in text.splitlines())


def find_recipe(name: str) -> str:
    """Returns the file that `--config NAME` means: a file or URL, or else a packaged recipe.

    Raises:
        ConfigError: Neither exists.
    """
    if storage.exists(name):
        return name
    packaged = CONFIGS / f"{name.removesuffix('.yaml').removesuffix('.yml')}.yaml"
    if "/" not in name and packaged.is_file() and _is_recipe(packaged):
        return str(packaged)
    raise ConfigError(
        f"--config {name}: there is no such file or packaged recipe; packaged recipes are {', '.join(packaged_recipes())}"
    )


def _with_recipe_files(arguments: Sequence[str]) -> list[str]:
    """Returns the command line with files in place of the names of `--config` options."""
    found = list(arguments)
    for place, word in enumerate(found):
        if word == "--config" and place + 1 < len(found):
            found[place + 1] = find_recipe(found[place + 1])
        elif word.startswith("--config="):
            found[place] = f"--config={find_recipe(word.partition('=')[2])}"
    return found


def recipe_parser(prog: str, description: str, helped: Collection[str] | None = None) -> CommandParser:
    """Returns a parser with `--config`, `--print_config` and one option per recipe key.

    Args:
        prog: Name of the command.
        description: What the command does.
        helped: Recipe sections that `--help` lists; None lists all.
    """
    parser = CommandParser(prog=prog, description=description)
    parser.add_argument(
        "--config",
        action="config",
        metavar="RECIPE",
        help="Recipe: a YAML file or the name of a packaged recipe; later options override it.",
    )
    for section in dataclasses.fields(Recipe):
        parser.add_class_arguments(section.default_factory, section.name)
        if helped is not None and section.name not in helped:
            parser.unhelped.append((parser.groups or {})[section.name])
    help_of = {field.name: "The whole section: a YAML file, or YAML text." for field in dataclasses.fields(Recipe)}
    help_of["--print_config"] = "Print the complete recipe and exit; =skip_default prints only what differs from the defaults."
    for action in parser._actions:
        action.help = help_of.get(action.option_strings[0]) or help_of.get(action.dest) or action.help
    return parser


def add_section_folder(parser: CommandParser, section: str, help: str, required: bool = True) -> None:
    """Adds an option `--{section} DIR` for a folder, URL or hub id, next to the section's keys.

    jsonargparse uses `--{section}` for the whole section, so the parser calls the option `--{section}_dir`, and the namespace
    has its value as `{section}_dir`.
    """
    parser.add_argument(f"--{section}_dir", metavar="DIR", type=str, required=required, help=help)
    parser.folders.add(section)


def _with_parser_names(parser: CommandParser, arguments: Sequence[str]) -> list[str]:
    """Returns the command line with `--{section} DIR` renamed to the parser's `--{section}_dir DIR`."""
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        spelled.append(f"{name}_dir{equals}{value}" if name[2:] in parser.folders and name.startswith("--") else argument)
    return spelled


def parse_recipe(parser: CommandParser, arguments: Sequence[str] | None = None) -> tuple[Recipe, Any]:
    """Parses a command line into its recipe and the namespace of the command's own options.

    Raises:
        ConfigError: A section's own check failed.
    """
    try:
        namespace = parser.instantiate(parser.parse_args(arguments))
    except ConfigError as error:
        parser.error(str(error))
    sections = {section.name: namespace.pop(section.name) for section in dataclasses.fields(Recipe)}
    return Recipe(**sections), namespace


def run_command(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None = None) -> int:
    """Runs a command's body; returns the exit status.

    A `ProjectError` prints one line on stderr and gives status 1, or 2 for a wrong command line or recipe (`ConfigError`). A
    file system error on a user's path gives 1 too. Anything else is a bug and keeps its traceback. A signal that ends the
    command (see `pipeline.processes.interruption`) gives 128 plus its number, such as 130.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for library in ("aiobotocore", "botocore"):  # they log every login
        logging.getLogger(library).setLevel(logging.WARNING)
    end_with_launcher(os.environ)
    with Interruption() as interruption:
        try:
            return _run(main, arguments, interruption)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume", file=sys.stderr)
            return 128 + (interruption.number or signal.SIGINT)


def _run(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None, interruption: Interruption) -> int:
    try:
        try:
            return main(arguments)
        except Exception as error:
            # Errors while a signal unwinds the command are a consequence of it.
            if interruption.number is not None:
                raise Interrupted(interruption.number) from error
            raise
    except ProjectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        message = explain_path_error(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
