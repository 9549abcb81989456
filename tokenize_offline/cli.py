"""The command line of `ivideogpt-tokenize`, without torch: `--help` and a wrong option answer at once."""

from pipeline.config.cli import CommandParser, add_section_folder, recipe_parser


def build_parser() -> CommandParser:
    """The command line."""
    parser = recipe_parser(
        "ivideogpt-tokenize",
        "Turn episode shards into token shards with a trained tokenizer. Run it alone, or start several processes with "
        "`accelerate launch --multi_gpu`, `torchrun` or `srun`: they share the shards. Jobs without a common launcher share "
        "them by --worker_count. What is done stays: after a failure the same command goes on.",
        helped=("clips", "quality", "tokenizer"),
    )
    parser.usage = "%(prog)s --shards DIR [DIR ...] --tokenizer DIR_OR_HUB_ID --output PATH_OR_URL [OPTION ...]"
    parser.add_argument(
        "--shards",
        nargs="+",
        required=True,
        metavar="DIR",
        help="Output folders of ivideogpt-ingest, or data set folders in them.",
    )
    add_section_folder(parser, "tokenizer", "Folder of a tokenizer, or its id on the Hugging Face hub.")
    parser.add_argument(
        "--output", required=True, metavar="PATH_OR_URL", help="Folder or URL; token shards go to OUTPUT/DATASET."
    )
    parser.add_argument("--splits", nargs="+", default=None, metavar="SPLIT", help="These splits; by default training.splits.")
    parser.add_argument(
        "--worker_count", type=int, default=1, metavar="N", help="How many jobs without a common launcher share the shards."
    )
    parser.add_argument(
        "--worker_index",
        type=int | None,
        default=None,
        metavar="INDEX",
        help="Which of these jobs this is, from 0; by default what SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX says.",
    )
    parser.add_argument(
        "--readers",
        type=int | None,
        default=None,
        metavar="N",
        help="Processes of each worker that decode frames; by default its share of the processors.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Make shards again that were made in another way.")
    return parser
