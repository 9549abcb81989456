"""The command `ivideogpt-tokenize`. Heavy imports wait until it runs: reader processes import the main module again."""

import sys
from collections.abc import Sequence

from pipeline.command import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    from tokenize_offline.command import tokenize

    return run_command(tokenize, arguments)


if __name__ == "__main__":
    sys.exit(main())
