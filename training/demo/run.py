"""Simulates data and runs ingest, tokenize, train (two processes) and predict on it; then reports times and scores.

Each stage is the command that a user would type, in its own process. Stages skip finished work, so run the command again to
resume after an interruption.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.common.errors import ConfigError
from pipeline.common.measured_json import measured_json
from pipeline.config.catalog import CONFIGS
from pipeline.config.cli import CommandParser, find_recipe, run_command
from pipeline.config.cli_output import show
from pipeline.processes.cpus import usable_cpus
from training.demo.report import report
from training.demo.stages import StageResult, run_stage

_RATE = "10"
# First seeds of the episodes. The demo's tokenizer was trained on seeds from 100000, so these are new to it.
_TRAIN_SEED, _TEST_SEED = 0, 50_000


class DemoOptions(Protocol):
    """The options of `ivideogpt-demo`."""

    output: Path
    config: str | Path
    tokenizer: Path
    episodes: int
    episode_steps: int
    test_episodes: int
    steps: int | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `ivideogpt-demo`; returns its exit status."""
    return run_command(_main, arguments)


def build_parser() -> CommandParser:
    """Returns the command line parser."""
    parser = CommandParser(prog="ivideogpt-demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_run"), metavar="DIR", help="Output folder.")
    parser.add_argument("--config", type=str, default="demo", metavar="RECIPE", help="Recipe of the demo.")
    parser.add_argument(
        "--tokenizer", type=Path, default=CONFIGS / "demo-tokenizer", metavar="DIR", help="Folder of a trained tokenizer."
    )
    parser.add_argument("--episodes", type=int, default=160, metavar="N", help="Number of training episodes to simulate.")
    parser.add_argument("--episode_steps", type=int, default=40, metavar="N", help="Number of frames per episode.")
    parser.add_argument("--test_episodes", type=int, default=8, metavar="N", help="Number of test episodes to simulate.")
    parser.add_argument("--steps", type=int, metavar="N", help="Number of training steps; default: that of the recipe.")
    return parser


def _main(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    options.config = find_recipe(options.config)
    if min(options.episodes, options.test_episodes) < 1:
        raise ConfigError("--episodes and --test_episodes must be at least 1")
    if not (options.tokenizer / "config.json").exists():
        raise ConfigError(f"{options.tokenizer} has no tokenizer (no config.json): choose another --tokenizer")
    started = time.perf_counter()
    results = _run_stages(options)
    table, summary = report(options.output, results, time.perf_counter() - started)
    (options.output / "summary.json").write_text(measured_json(summary, indent=1) + "\n", encoding="utf-8")
    if getattr(options, "json", False):
        show(summary, options)
    else:
        print(table)
    return 0


def _run_stages(options: DemoOptions) -> list[StageResult]:
    output, recipe = options.output, str(options.config)
    output.mkdir(parents=True, exist_ok=True)
    cores = usable_cpus()
    # Two training processes share the cores.
    base = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    per_process = {**base, "OMP_NUM_THREADS": str(max(1, cores // 2))}
    python = sys.executable
    log = output / "logs"
    log.mkdir(exist_ok=True)
    steps = ["--training.steps", str(options.steps)] if options.steps else []
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    stages: list[tuple[str, list[str], dict[str, str]]] = [
        (
            "simulate",
            [
                *(python, "-m", "training.demo.dataset", "--output", f"{output}/oxe"),
                *("--episodes", str(options.episodes), "--test_episodes", str(options.test_episodes)),
                *("--steps", str(options.episode_steps), "--seed", str(_TRAIN_SEED), "--test_seed", str(_TEST_SEED)),
            ],
            base,
        ),
        (
            "ingest",
            [
                *(python, "-m", "pipeline", "--config", recipe, "--dataset", "pusht", "--camera", "image", "--rate", _RATE),
                *("--source", f"{output}/oxe/pusht/0.1.0", "--output", f"{output}/episodes"),
            ],
            base,
        ),
        (
            "tokenize",
            [
                *(python, "-m", "tokenize_offline", "--config", recipe, "--shards", f"{output}/episodes"),
                *("--tokenizer", str(options.tokenizer), "--output", f"{output}/tokens"),
            ],
            base,
        ),
        (
            "train",
            [
                *(*torchrun, "training", "--config", recipe, "--tokens", f"{output}/tokens", *steps),
                *("--tokenizer", str(options.tokenizer), "--output", f"{output}/run", "--resume", "auto"),
            ],
            per_process,
        ),
        (
            "predict",
            [
                *(python, "-m", "training.predict", "--config", recipe, "--model", f"{output}/run/model"),
                *("--input", f"{output}/episodes/pusht/test-000000.tar", "--output", f"{output}/predictions"),
                *("--episodes", str(options.test_episodes), "--temperature", "0"),
            ],
            base,
        ),
    ]
    return [run_stage(name, command, log / f"{name}.log", environment) for name, command, environment in stages]


if __name__ == "__main__":
    sys.exit(main())
