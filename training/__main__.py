"""The command `ivideogpt-train`: trains a transformer on token shards."""

import argparse
import sys
from collections.abc import Sequence
from typing import Literal, Protocol

from pipeline.config.cli import CommandParser, add_section_folder, parse_recipe, recipe_parser, run_command
from pipeline.config.cli_output import show


class TrainOptions(Protocol):
    """The command's own options; `build_parser` documents them."""

    tokens: list[str]
    output: str
    resume: Literal["auto", "never"]
    tokenizer_dir: str | None
    replay: int | None
    verify_resume: int | None
    processes: tuple[int, int] | None


def build_parser() -> CommandParser:
    """Returns the command line parser."""
    parser = recipe_parser(
        "ivideogpt-train",
        "Pre-train the transformer on token shards, alone or under a launcher.",
        helped={"data", "model", "training"},
    )
    parser.usage = "%(prog)s --tokens DIR [DIR ...] --output DIR [OPTION ...]"
    add = parser.add_argument
    add("--tokens", nargs="+", type=str, required=True, metavar="DIR", help="Output folders or URLs of ivideogpt-tokenize.")
    add("--output", type=str, required=True, metavar="DIR", help="Run folder; all ranks must see the same one.")
    add(
        "--resume",
        choices=["auto", "never"],
        default="auto",
        help="auto: resume a run in --output; never: require a new folder.",
    )
    add_section_folder(
        parser, "tokenizer", "Folder, URL or hub id of the shards' tokenizer; it goes into the exported model.", required=False
    )
    add("--replay", type=int, metavar="STEP", help="Repeat this step and print the loss of each clip; changes nothing.")
    add(
        "--verify_resume",
        nargs="?",
        type=int,
        const=50,
        metavar="STEPS",
        help="Check that a killed run resumes exactly, with STEPS before and after the kill (50 if left out).",
    )
    add(
        "--processes",
        nargs=2,
        type=int,
        metavar=("FIRST", "OTHER"),
        help="Numbers of processes for --verify_resume; default: all GPUs and half of them, or 2 and 1.",
    )
    # The deepspeed launcher also passes the rank as an option; the environment has it too.
    add("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(train, arguments)


def train(arguments: Sequence[str] | None = None) -> int:
    """Trains, replays a step, or verifies a resume, as the options say; returns the exit status.

    Raises:
        ProjectError: The input is invalid, or training failed.
    """
    parser = build_parser()
    options: TrainOptions
    recipe, options = parse_recipe(parser, arguments)
    # Imported after the command line is checked, because torch, transformers and DeepSpeed take seconds.
    from training.trainer.replay import replay
    from training.trainer.run import RunOptions
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
