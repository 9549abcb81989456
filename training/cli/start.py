"""Parses a command line, then imports and runs the command."""

import importlib
from collections.abc import Callable, Sequence

from pipeline.config.cli import CommandParser, parse_recipe, run_command


def start(build_parser: Callable[[], CommandParser], body: str, arguments: Sequence[str] | None) -> int:
    """Runs a command; returns its exit status.

    Args:
        build_parser: Makes the command line parser.
        body: Module whose `run` takes the parser, the recipe and the options.
        arguments: Command line; None means that of the process.
    """

    def run(given: Sequence[str] | None) -> int:
        parser = build_parser()
        recipe, options = parse_recipe(parser, given)
        return int(importlib.import_module(body).run(parser, recipe, options))

    return run_command(run, arguments)
