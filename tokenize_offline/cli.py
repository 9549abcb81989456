"""The command line of `ivideogpt-tokenize`. It does not import torch, so `--help` and wrong options answer at once."""

from typing import Protocol

from pipeline.config.cli import CommandParser, add_section_folder, recipe_parser


class TokenizeOptions(Protocol):
    """The command's own options, as `build_parser` parses them."""

    shards: list[str]
    tokenizer_dir: str
    output: str
    splits: list[str] | None
    worker_count: int
    worker_index: int | None
    readers: int | None
    overwrite: bool


def build_parser() -> CommandParser:
    """The parser of the command line."""
    parser = recipe_parser(
        "ivideogpt-tokenize",
        "Turn episode shards into token shards with a trained tokenizer. Processes started together by `torchrun`, "
        "`accelerate launch --multi_gpu` or `srun` share the shards. Run the same command again to resume.",
        helped=("clips", "quality", "tokenizer"),
    )
    parser.usage = "%(prog)s --shards DIR [DIR ...] --tokenizer DIR_OR_HUB_ID --output PATH_OR_URL [OPTION ...]"
    parser.add_argument(
        "--shards",
        nargs="+",
        required=True,
        metavar="DIR",
        help="Output folders of ivideogpt-ingest, or single data set folders.",
    )
    add_section_folder(parser, "tokenizer", "Tokenizer folder or Hugging Face hub id.")
    parser.add_argument(
        "--output", required=True, metavar="PATH_OR_URL", help="Folder or URL; token shards are written to OUTPUT/DATASET."
    )
    parser.add_argument(
        "--splits", nargs="+", default=None, metavar="SPLIT", help="Splits to tokenize (default: training.splits)."
    )
    parser.add_argument(
        "--worker_count", type=int, default=1, metavar="N", help="Number of independent jobs that divide the shards."
    )
    parser.add_argument(
        "--worker_index",
        type=int | None,
        default=None,
        metavar="INDEX",
        help="Index of this job, from 0 (default: $SLURM_ARRAY_TASK_ID or $JOB_COMPLETION_INDEX).",
    )
    parser.add_argument(
        "--readers",
        type=int | None,
        default=None,
        metavar="N",
        help="Frame-decoding processes of each worker (default: its share of the CPU cores).",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace shards that another recipe or tokenizer made.")
    return parser
