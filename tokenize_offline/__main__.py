"""The command `ivideogpt-tokenize`. Heavy imports wait until it runs: reader processes import the main module again."""

import sys
from collections.abc import Sequence

from pipeline.config.cli import parse_recipe, run_command
from tokenize_offline.cli import build_parser


def run(arguments: Sequence[str] | None = None) -> int:
    """The command: its command line, then its body; see `run_command` for errors."""
    parser = build_parser()
    recipe, options = parse_recipe(parser, arguments)
    from tokenize_offline.command import tokenize

    return tokenize(recipe, options, parser.given("data").get("resolution"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
