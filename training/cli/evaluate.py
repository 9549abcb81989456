"""Command line of `ivideogpt-evaluate`."""

import sys
from collections.abc import Sequence
from typing import Literal

from pipeline.config.cli import CommandParser, add_section_folder, recipe_parser
from training.cli.options import add_sampling_options
from training.cli.start import start
from training.evaluation.metric_names import DEFAULT_METRICS, Metric
from training.evaluation.protocols import PROTOCOLS


def build_parser() -> CommandParser:
    """Returns the command line parser."""
    parser = recipe_parser(
        "ivideogpt-evaluate",
        "Score a world model's predictions on data sets, with or without a published protocol. Without one, clips are cut as "
        "in the model's training (recipe.yaml in its folder) unless --config or --clips.* options say otherwise.",
        helped=("clips",),
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --shards DIR [DIR ...] --output DIR_OR_URL [OPTION ...]"
    add_section_folder(parser, "model", "Model folder, run folder, URL or hub id.")
    parser.add_argument(
        "--shards", metavar="DIR", type=str, nargs="+", required=True, help="Output folders of ivideogpt-ingest."
    )
    parser.add_argument(
        "--output", metavar="DIR_OR_URL", type=str, required=True, help="Output folder for evaluation.json and evaluation.md."
    )
    parser.add_argument(
        "--protocol",
        type=Literal[tuple(PROTOCOLS)] | None,
        default=None,
        help="Published protocol; sets clip length, samples and clips.",
    )
    parser.add_argument(
        "--metrics", type=list[Metric], default=list(DEFAULT_METRICS), help="Metrics to compute, such as [psnr,ssim,lpips,fvd]."
    )
    parser.add_argument(
        "--vgg_weights",
        metavar="FILE",
        type=str | None,
        default=None,
        help="VGG16 weights for lpips; default: those of ivideogpt-fetch-weights.",
    )
    parser.add_argument(
        "--i3d_weights",
        metavar="FILE",
        type=str | None,
        default=None,
        help="I3D weights for fvd; default: those of ivideogpt-fetch-weights.",
    )
    parser.add_argument("--split", type=str | None, default=None, help="Split to evaluate; default: all splits.")
    parser.add_argument(
        "--held_out",
        type=bool,
        default=True,
        help="Score only episodes that the model was not trained on.",
    )
    parser.add_argument("--episodes", type=int | None, default=None, help="Maximum number of episodes per data set.")
    parser.add_argument("--start", type=int, default=0, help="First frame of the clips.")
    parser.add_argument(
        "--steps", type=int | None, default=None, help="Number of frames to predict; default: clip length minus context."
    )
    add_sampling_options(parser, samples=None, note="; default: that of the protocol, or 1")
    parser.add_argument("--samples_at_once", type=int, default=25, help="Batch size in samples; limits memory.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `ivideogpt-evaluate`; returns its exit status."""
    return start(build_parser, "training.evaluate", arguments)


if __name__ == "__main__":
    sys.exit(main())
