"""The command line of `ivideogpt-predict`."""

import sys
from collections.abc import Sequence

from pipeline.config.cli import CommandParser, recipe_parser
from training.cli.options import add_sampling_options, add_start_options
from training.cli.start import start


def build_parser() -> CommandParser:
    """The command's options beside the recipe."""
    parser = recipe_parser(
        "ivideogpt-predict",
        "Predict video with a trained world model: GIF, mp4, web page, metrics. Clips are cut as the model was trained, where "
        "its folder says so (recipe.yaml) and neither --config nor --clips.stride and the like do.",
        helped=("clips",),
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --input PATH_OR_URL --output DIR_OR_URL [OPTION ...]"
    add_start_options(parser)
    parser.add_argument(
        "--output", metavar="DIR_OR_URL", type=str, required=True, help="Folder for pictures, pages and metrics."
    )
    parser.add_argument(
        "--episode", metavar="KEY_OR_NUMBER", type=str | None, default=None, help="Key of one episode, or its number from 0."
    )
    parser.add_argument(
        "--episodes", type=int, default=1, help="How many episodes to predict, from the first on; the result has their average."
    )
    parser.add_argument("--start", type=int, default=0, help="First frame of the clip.")
    parser.add_argument("--steps", type=int | None, default=None, help="Frames to predict; by default the rest of a clip.")
    add_sampling_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivideogpt-predict`; returns its exit status."""
    return start(build_parser, "training.predict", arguments)


if __name__ == "__main__":
    sys.exit(main())
