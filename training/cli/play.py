"""The command line of `ivideogpt-play`."""

import sys
from collections.abc import Sequence

from pipeline.config.cli import CommandParser, recipe_parser
from training.cli.options import add_sampling_options, add_start_options
from training.cli.start import start

# Episodes that are offered as starts, where the command line doesn't say.
OFFERED = 16


def build_parser() -> CommandParser:
    """The command's options beside the recipe."""
    parser = recipe_parser(
        "ivideogpt-play", "Drive a world model with keys and sliders on a local web page.", helped=("clips",)
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --input PATH_OR_URL [OPTION ...]"
    add_start_options(parser)
    parser.add_argument(
        "--episodes",
        type=int | None,
        default=None,
        help=f"How many episodes to offer as starts, from the first on; by default {OFFERED}.",
    )
    # One unlikely id stays in view for as long as a person plays, so fewer of them are drawn than in predictions.
    add_sampling_options(parser, of_samples=", shown side by side; the page can change all this", temperature=0.5)
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="Address to listen on; any but the default lets other machines in."
    )
    parser.add_argument("--port", type=int, default=8600, help="Port to listen on; 0 takes a free one.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivideogpt-play`; returns its exit status."""
    return start(build_parser, "training.play.command", arguments)


if __name__ == "__main__":
    sys.exit(main())
