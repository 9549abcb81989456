"""Command line of `ivideogpt-train-tokenizer`."""

import sys
from collections.abc import Sequence
from typing import Literal

from pipeline.config.cli import CommandParser, recipe_parser
from training.cli.start import start


def build_parser() -> CommandParser:
    """Returns the command line parser."""
    parser = recipe_parser(
        "ivideogpt-train-tokenizer",
        "Train the compressive VQ tokenizer on episode shards. SIGTERM and SIGUSR1 finish the step and save.",
        helped=("data", "clips", "quality", "tokenizer"),
    )
    parser.usage = f"{parser.prog} --shards DIR [DIR ...] --output DIR [OPTION ...]"
    parser.add_argument(
        "--shards", metavar="DIR", type=str, required=True, nargs="+", help="Output folders of ivideogpt-ingest."
    )
    parser.add_argument(
        "--output", metavar="DIR", type=str, required=True, help="Run folder; the tokenizer is written to its `tokenizer/`."
    )
    parser.add_argument(
        "--resume",
        type=Literal["auto", "never"],
        default="auto",
        help="auto: resume the run if there is one; never: require a new run folder.",
    )
    parser.add_argument("--workers", type=int, default=2, help="Number of processes that read clips.")
    parser.add_argument(
        "--init_from",
        metavar="DIR_OR_HUB_ID",
        type=str | None,
        default=None,
        help="Tokenizer to start from: folder, URL or hub id.",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `ivideogpt-train-tokenizer`; returns its exit status."""
    return start(build_parser, "training.train_tokenizer", arguments)


if __name__ == "__main__":
    sys.exit(main())
