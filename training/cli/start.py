"""From a command line to the command's body, which is imported when the command line is right."""

import importlib
from collections.abc import Callable, Sequence

from pipeline.config.cli import CommandParser, parse_recipe, run_command


def start(build_parser: Callable[[], CommandParser], body: str, arguments: Sequence[str] | None) -> int:
    """Run a command; returns its exit status.

    Args:
        build_parser: Of its command line.
        body: Module whose `run` takes the parser, the recipe and the options.
        arguments: The command line; None takes that of the process.
    """

    def run(given: Sequence[str] | None) -> int:
        parser = build_parser()
        recipe, options = parse_recipe(parser, given)
        return int(importlib.import_module(body).run(parser, recipe, options))

    return run_command(run, arguments)
