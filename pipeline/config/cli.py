"""What all commands share: a parser over the recipe, overrides by dotted name, and errors as one line.

Built on jsonargparse, which fills the recipe's dataclasses from `--config RECIPE` and `--section.key VALUE`; added here
is the nearest valid key for one that is not known.
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
from jsonargparse import DefaultHelpFormatter

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ProjectError
from pipeline.common.path_errors import explain_path_error
from pipeline.common.versions import installed_version
from pipeline.config.cli_errors import Option, Options, explain
from pipeline.config.recipe import Recipe
from pipeline.config.renamed_keys import rename_options, rename_recipe_keys, rename_section_keys
from pipeline.processes.child_processes import end_with_launcher
from pipeline.processes.interruption import Interrupted, Interruption

# A recipe may lie on an object store.
jsonargparse.set_parsing_settings(config_read_mode_fsspec_enabled=True)

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class _PlainHelp(DefaultHelpFormatter):
    """Help whose options name no Python types, and whose defaults are left out where there are none."""

    def _get_help_string(self, action: Any) -> str:
        text = action.help or ""
        default = action.default
        if default is None or default is False or default == argparse.SUPPRESS or not action.option_strings:
            return text
        return f"{text} (default: {' '.join(map(str, default)) if isinstance(default, list | tuple) else default})"


class CommandParser(jsonargparse.ArgumentParser):
    """A jsonargparse parser that speaks of options as they are typed, and of types in plain words.

    Every command has `--version` and `--json` through it.

    Attributes:
        unhelped: Groups of options that `--help` doesn't list.
        folders: Options that are typed `--NAME` and that the parser calls `--NAME_dir`.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        """See `jsonargparse.ArgumentParser`."""
        self.unhelped: list[Any] = []
        self.folders: set[str] = set()
        self._given: list[str] = []
        self._words: list[str] = []
        self._user_values: Any = None
        super().__init__(*args, **{"formatter_class": _PlainHelp, "allow_abbrev": False, **named})
        self.add_argument(
            "--version", action="version", version=f"{self.prog} {installed_version()}", help="Print the version."
        )
        self.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="Print results as JSON on a terminal too; where output is piped they always are.",
        )

    def parse_args(  # type: ignore[override]  # as jsonargparse has it, not argparse
        self, args: Sequence[str] | None = None, *rest: Any, **named: Any
    ) -> Any:
        """Parse a command line; see `jsonargparse.ArgumentParser`."""
        self._given = rename_options(sys.argv[1:] if args is None else args)
        self._words, self._user_values = _recipes_found(_spelled_out(self, self._given)), None
        return super().parse_args(self._words, *rest, **named)

    def given(self, section: str) -> dict[str, Any]:
        """Returns the keys of a recipe section that the parsed command line, or its `--config` file, sets: key -> value."""
        if self._user_values is None:
            self._user_values = super().parse_args(self._words, defaults=False)
        values = self._user_values.get(section)
        return dict(vars(values)) if values is not None else {}

    def format_help(self, *args: Any, **named: Any) -> str:
        """The text of `--help`."""
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
        """Print what is wrong in plain words and exit with status 2."""
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
        # jsonargparse takes a lone value for an option of several from the command line, and from YAML it should too.
        if action.nargs == "+" and not isinstance(value, (list, type(None))):
            value = [value]
        return super()._check_value_key(action, value, key, *rest, **named)


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the project, for `--config NAME`."""
    return sorted(path.stem for path in _CONFIGS.glob("*.yaml") if _is_recipe(path))


def _is_recipe(path: Path) -> bool:
    """Whether a file of `configs/` is a recipe; the catalog's tables lie there too."""
    sections = {section.name for section in dataclasses.fields(Recipe)}
    text = path.read_text(encoding="utf-8")
    return any(line.partition(":")[0] in sections for line in text.splitlines())


def find_recipe(name: str) -> str:
    """The file that `--config NAME` means: a file or URL of that name, else a recipe that comes with the project.

    Raises:
        ConfigError: There is neither.
    """
    if storage.exists(name):
        return name
    packaged = _CONFIGS / f"{name.removesuffix('.yaml').removesuffix('.yml')}.yaml"
    if "/" not in name and packaged.is_file() and _is_recipe(packaged):
        return str(packaged)
    raise ConfigError(
        f"--config {name}: there is no such file, nor a recipe of that name that comes with the project. Those are: "
        + ", ".join(packaged_recipes())
    )


def _recipes_found(arguments: Sequence[str]) -> list[str]:
    """A command line whose `--config` options name files."""
    found = list(arguments)
    for place, word in enumerate(found):
        if word == "--config" and place + 1 < len(found):
            found[place + 1] = find_recipe(found[place + 1])
        elif word.startswith("--config="):
            found[place] = f"--config={find_recipe(word.partition('=')[2])}"
    return found


def recipe_parser(prog: str, description: str, helped: Collection[str] | None = None) -> CommandParser:
    """A parser with `--config`, `--print_config` and one option for every key of the recipe.

    Args:
        prog: Name of the command.
        description: What it does.
        helped: The sections of the recipe whose keys `--help` lists, those that matter to the command; None lists all.
    """
    parser = CommandParser(prog=prog, description=description)
    parser.add_argument(
        "--config",
        action="config",
        metavar="RECIPE",
        help="A recipe: a YAML file, or the name of one that comes with the project, such as oxe-64-act-free-small. Later "
        "options override it.",
    )
    for section in dataclasses.fields(Recipe):
        parser.add_class_arguments(section.default_factory, section.name)
        if helped is not None and section.name not in helped:
            parser.unhelped.append((parser.groups or {})[section.name])
    return parser


def add_section_folder(parser: CommandParser, section: str, help: str, required: bool = True) -> None:
    """Let `--{section} DIR` name a folder (or URL, or hub id) beside the section's own keys.

    jsonargparse keeps `--{section}` for the section as a whole, so within the parser the option is `--{section}_dir`, and its
    value is `{section}_dir` of the namespace.
    """
    parser.add_argument(f"--{section}_dir", metavar="DIR", type=str, required=required, help=help)
    parser.folders.add(section)


def _spelled_out(parser: CommandParser, arguments: Sequence[str]) -> list[str]:
    """A command line with the parser's own names of `--{section} DIR` options."""
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        spelled.append(f"{name}_dir{equals}{value}" if name[2:] in parser.folders and name.startswith("--") else argument)
    return spelled


def parse_recipe(parser: CommandParser, arguments: Sequence[str] | None = None) -> tuple[Recipe, Any]:
    """Parse a command line into its recipe and the namespace of the command's own options.

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
    """Run a command's body; returns the exit status.

    A `ProjectError` becomes one line on stderr and status 1, or 2 where the command line or the recipe is wrong
    (`ConfigError`). So does what a file system says about a path. All else is a bug and keeps its traceback. A signal that ends
    the command (see `pipeline.processes.interruption`) gives 128 and its number, such as 130.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for library in ("aiobotocore", "botocore"):  # They tell of every login.
        logging.getLogger(library).setLevel(logging.WARNING)
    end_with_launcher(os.environ)
    with Interruption() as interruption:
        try:
            return _outcome(main, arguments, interruption)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr)
            return 128 + (interruption.number or signal.SIGINT)


def _outcome(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None, interruption: Interruption) -> int:
    try:
        try:
            return main(arguments)
        except Exception as error:
            # What breaks on the way out is no news.
            if interruption.number is not None:
                raise Interrupted(interruption.number) from error
            raise
    except ProjectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        told = explain_path_error(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
