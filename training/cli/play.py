"""Command line of `ivideogpt-play`."""

import sys
from collections.abc import Sequence

from pipeline.config.cli import CommandParser, recipe_parser
from training.cli.options import add_sampling_options, add_start_options
from training.cli.start import start

# Default number of episodes to choose from.
OFFERED = 16


def build_parser() -> CommandParser:
    """Returns the command line parser."""
    parser = recipe_parser(
        "ivideogpt-play", "Drive a world model with keys and sliders on a local web page.", helped=("clips",)
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --input PATH_OR_URL [OPTION ...]"
    add_start_options(parser)
    parser.add_argument(
        "--episodes",
        type=int | None,
        default=None,
        help=f"Number of episodes to choose from; default: {OFFERED}.",
    )
    # An unlikely id stays in view while a person plays, so the temperature is lower than in predictions.
    add_sampling_options(parser, note=", shown side by side", temperature=0.5)
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to listen on; other addresses let other machines in."
    )
    parser.add_argument("--port", type=int, default=8600, help="Port to listen on; 0 = any free port.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `ivideogpt-play`; returns its exit status."""
    return start(build_parser, "training.play.command", arguments)


if __name__ == "__main__":
    sys.exit(main())
