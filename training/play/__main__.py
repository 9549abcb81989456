"""Runs `ivideogpt-play` as `python -m training.play`."""

import sys

from training.cli.play import main

if __name__ == "__main__":
    sys.exit(main())
