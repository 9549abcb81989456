"""Command line of `ivideogpt-predict`."""

import sys
from collections.abc import Sequence

from pipeline.config.cli import CommandParser, recipe_parser
from training.cli.options import add_sampling_options, add_start_options
from training.cli.start import start


def build_parser() -> CommandParser:
    """Returns the command line parser."""
    parser = recipe_parser(
        "ivideogpt-predict",
        "Predict video with a trained world model; writes GIF, mp4, web page and metrics. Clips are cut as in the model's "
        "training (recipe.yaml in its folder) unless --config or --clips.* options say otherwise.",
        helped=("clips",),
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --input PATH_OR_URL --output DIR_OR_URL [OPTION ...]"
    add_start_options(parser)
    parser.add_argument(
        "--output", metavar="DIR_OR_URL", type=str, required=True, help="Output folder for pictures, pages and metrics."
    )
    parser.add_argument(
        "--episode", metavar="KEY_OR_NUMBER", type=str | None, default=None, help="Key or number (from 0) of one episode."
    )
    parser.add_argument("--episodes", type=int, default=1, help="Number of episodes to predict.")
    parser.add_argument("--start", type=int, default=0, help="First frame of the clip.")
    parser.add_argument(
        "--steps", type=int | None, default=None, help="Number of frames to predict; default: clip length minus context."
    )
    add_sampling_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `ivideogpt-predict`; returns its exit status."""
    return start(build_parser, "training.predict", arguments)


if __name__ == "__main__":
    sys.exit(main())
