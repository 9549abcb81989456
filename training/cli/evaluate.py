"""The command line of `ivideogpt-evaluate`."""

import sys
from collections.abc import Sequence
from typing import Literal

from pipeline.config.cli import CommandParser, add_section_folder, recipe_parser
from training.cli.options import add_sampling_options
from training.cli.start import start
from training.evaluation.metric_names import DEFAULT_METRICS, Metric
from training.evaluation.protocols import PROTOCOLS


def build_parser() -> CommandParser:
    """The command's options beside the recipe."""
    parser = recipe_parser(
        "ivideogpt-evaluate",
        "Measure a world model's predictions on data sets, under published protocols. Without a protocol, clips are cut as the "
        "model was trained, where its folder says so (recipe.yaml) and neither --config nor --clips.stride and the like do.",
        helped=("clips",),
    )
    parser.usage = f"{parser.prog} --model DIR_OR_HUB_ID --shards DIR [DIR ...] --output DIR_OR_URL [OPTION ...]"
    add_section_folder(parser, "model", "Folder (or URL, or hub id) that holds tokenizer/ and transformer/.")
    parser.add_argument(
        "--shards", metavar="DIR", type=str, nargs="+", required=True, help="Output folders of ivideogpt-ingest."
    )
    parser.add_argument(
        "--output", metavar="DIR_OR_URL", type=str, required=True, help="Folder for evaluation.json and evaluation.md."
    )
    parser.add_argument(
        "--protocol",
        type=Literal[tuple(PROTOCOLS)] | None,
        default=None,
        help="A published protocol: clip length, samples, clips.",
    )
    parser.add_argument(
        "--metrics", type=list[Metric], default=list(DEFAULT_METRICS), help="A list, such as [psnr,ssim,lpips,fvd]."
    )
    parser.add_argument(
        "--vgg_weights",
        metavar="FILE",
        type=str | None,
        default=None,
        help="File with VGG16's weights, for lpips; by default what ivideogpt-fetch-weights brought.",
    )
    parser.add_argument(
        "--i3d_weights",
        metavar="FILE",
        type=str | None,
        default=None,
        help="File with I3D's weights, for fvd; by default what ivideogpt-fetch-weights brought.",
    )
    parser.add_argument("--split", type=str | None, default=None, help="Whose episodes are evaluated; by default those of all.")
    parser.add_argument(
        "--held_out",
        type=bool,
        default=True,
        help="Only episodes that the model was not trained on: those it held out, and splits that gave it no clips. "
        "`false` scores what it was trained on too.",
    )
    parser.add_argument(
        "--episodes", type=int | None, default=None, help="How many of each data set at most, from the first on."
    )
    parser.add_argument("--start", type=int, default=0, help="First frame of the clips.")
    parser.add_argument("--steps", type=int | None, default=None, help="Frames to predict; by default the rest of a clip.")
    add_sampling_options(parser, samples=None, of_samples="; by default as many as the protocol has, else 1")
    parser.add_argument("--samples_at_once", type=int, default=25, help="Samples in one batch; bounds memory.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivideogpt-evaluate`; returns its exit status."""
    return start(build_parser, "training.evaluate", arguments)


if __name__ == "__main__":
    sys.exit(main())
