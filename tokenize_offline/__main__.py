"""The command `ivideogpt-tokenize`. It imports torch only when it runs, because reader processes import this module too."""

import sys
from collections.abc import Sequence

from pipeline.config.cli import parse_recipe, run_command
from tokenize_offline.cli import build_parser


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and tokenize; returns the exit status. `run_command` reports errors."""
    parser = build_parser()
    recipe, options = parse_recipe(parser, arguments)
    from tokenize_offline.command import tokenize

    return tokenize(recipe, options, parser.given("data").get("resolution"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
