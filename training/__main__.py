"""The command `ivideogpt-train`: token shards become a trained transformer."""

import argparse
import sys
from collections.abc import Sequence

from pipeline.config.cli import CommandParser, add_section_folder, parse_recipe, recipe_parser, run_command
from pipeline.config.cli_output import show


def build_parser() -> CommandParser:
    """The command's options beside the recipe."""
    parser = recipe_parser(
        "ivideogpt-train",
        "Pre-train the transformer on token shards, alone or under a launcher.",
        helped={"data", "model", "training"},
    )
    parser.usage = "%(prog)s --tokens DIR [DIR ...] --output DIR [OPTION ...]"
    parser.add_argument(
        "--tokens", nargs="+", type=str, required=True, metavar="DIR", help="Folders or URLs that ivideogpt-tokenize wrote."
    )
    parser.add_argument("--output", type=str, required=True, metavar="DIR", help="Run folder; all ranks must see the same one.")
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="auto",
        help="auto: go on from the newest whole checkpoint in --output, or begin there. never: require a new run folder. "
        "Default: auto.",
    )
    add_section_folder(
        parser,
        "tokenizer",
        "Folder, URL or hub id of the tokenizer that made the shards: goes into the exported model.",
        required=False,
    )
    parser.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="Make this step of the run in --output again, change nothing, and print the loss of each of its clips.",
    )
    parser.add_argument(
        "--verify_resume",
        nargs="?",
        type=int,
        const=50,
        metavar="STEPS",
        help="Kill a short run of this recipe, let it go on with the same and with another number of processes, compare both "
        "with an undisturbed run, and print the verdict. --output is a new folder. Default: 50 steps before and after.",
    )
    parser.add_argument(
        "--processes",
        nargs=2,
        type=int,
        metavar=("FIRST", "OTHER"),
        help="Numbers of processes for --verify_resume. Default: all GPUs of this machine and half of them, or 2 and 1.",
    )
    # The deepspeed launcher passes its rank as an option too; the environment says the same.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(train, arguments)


def train(arguments: Sequence[str] | None = None) -> int:
    """The command's body.

    Raises:
        ProjectError: Of all kinds; the message says what to do.
    """
    parser = build_parser()
    recipe, options = parse_recipe(parser, arguments)
    # Imported after the command line is checked: torch, transformers and DeepSpeed take seconds.
    from training.trainer.replay import replay
    from training.trainer.setup import RunOptions
    from training.trainer.trainer import pretrain
    from training.trainer.verify_resume.verify import verify_resume

    model_keys = tuple(parser.given("model"))
    run_options = RunOptions(options.tokens, options.output, options.resume, options.tokenizer_dir, model_keys=model_keys)
    if options.verify_resume is not None:
        verdict = verify_resume(recipe, run_options, options.verify_resume, options.processes)
        show(verdict, options)
        return 0 if verdict["passed"] else 1
    summary = pretrain(recipe, run_options) if options.replay is None else replay(recipe, run_options, options.replay)
    if summary is not None:
        show(summary, options, look_at=summary.get("model"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
