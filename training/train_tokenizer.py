"""`ivideogpt-train-tokenizer`: trains the compressive VQ tokenizer on episode shards, alone or under `accelerate launch`."""

import contextlib
import dataclasses
import os
import sys
from typing import Any

from pipeline.common.errors import ConfigError
from pipeline.common.path_errors import explained_write_errors, require_writable
from pipeline.config.cli import CommandParser
from pipeline.config.cli_output import show
from pipeline.config.recipe import Recipe
from tokenize_offline.tokenizer import CompressiveVQModel
from training.cli.train_tokenizer import main
from training.distributed import Processes, find_rank_info
from training.precision import agree_on_precision
from training.tokenizer_training.checkpoints import mark_earlier
from training.tokenizer_training.run import open_run, with_precision
from training.tokenizer_training.start import take_shape
from training.tokenizer_training.trainer import TokenizerTrainer
from training.trainer.checkpoints.intact import resume_from_intact_checkpoint
from training.trainer.logs.loggers import require_wandb
from training.trainer.run_dir import lock_run_dir
from training.trainer.signals import StopRequest


def run(parser: CommandParser, recipe: Recipe, options: Any) -> int:
    """The command's body; see `training.predict.run`."""
    if options.workers < 0:
        raise ConfigError(f"--workers must be at least 0, not {options.workers}")
    require_wandb(recipe.training.wandb_project)
    rank_info = find_rank_info(os.environ)
    first = rank_info.rank == 0
    if first:
        require_writable(options.output)
    trained = None
    if options.init_from is not None:
        trained = CompressiveVQModel.from_pretrained(options.init_from)
        shaped = take_shape(recipe.tokenizer, trained.config, parser.given("tokenizer"))
        recipe = dataclasses.replace(recipe, tokenizer=shaped)
    run = open_run(recipe, options.output, options.resume, tell=first)
    lock = lock_run_dir(run.folder) if first else contextlib.nullcontext()
    with lock, StopRequest() as stop, explained_write_errors(run.folder):
        if first:
            mark_earlier(run.checkpoints, run.fingerprint)
        with Processes(rank_info) as processes:
            precision = agree_on_precision("tokenizer.training_precision", run.recipe.tokenizer.training_precision, processes)
            start = dataclasses.replace(run, recipe=with_precision(run.recipe, precision))
            run = resume_from_intact_checkpoint(
                start.at_newest_checkpoint({}, first), processes, lambda damaged: start.at_newest_checkpoint(damaged, first)
            )
            # accelerate imports DeepSpeed where it is installed, whose log goes to what is stdout then.
            with contextlib.redirect_stdout(sys.stderr):
                trainer = TokenizerTrainer(run, processes, options.shards, options.workers, trained)
            summary = trainer.run(stop)
            if first:
                show(summary, options, look_at=summary.get("tokenizer"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
