"""`ivideogpt-train-tokenizer`: trains the compressive VQ tokenizer on episode shards, alone or under `accelerate launch`."""

import contextlib
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ConflictError
from pipeline.common.manifests import describe_difference
from pipeline.common.path_errors import explained_write_errors, require_writable
from pipeline.config.cli import CommandParser
from pipeline.config.cli_output import show
from pipeline.config.model import TokenizerConfig
from pipeline.config.recipe import Recipe
from pipeline.config.renamed_keys import rename_section_keys
from tokenize_offline.precision import choose_precision, slow_precisions
from tokenize_offline.tokenizer import CompressiveVQModel
from training.cli.train_tokenizer import main
from training.distributed import find_rank_info, local_device
from training.tokenizer_training.start import take_shape
from training.tokenizer_training.trainer import TokenizerTrainer
from training.trainer.run_dir import RUN_NAME, lock_run_dir
from training.trainer.signals import StopRequest

log = logging.getLogger(__name__)
# What a resumed run may change without becoming another experiment.
_MAY_CHANGE = ("steps", "log_every", "checkpoint_every", "precision", "clips_per_batch", "vgg_weights")


def run(parser: CommandParser, recipe: Recipe, options: Any) -> int:
    """The command's body; see `training.predict.run`."""
    if options.workers < 0:
        raise ConfigError(f"--workers must be at least 0, not {options.workers}")
    rank_info = find_rank_info(os.environ)
    if not storage.is_local(options.output):
        raise ConfigError(f"--output {options.output} must be a folder on a mounted disk: a run writes there all the time")
    if rank_info.rank == 0:
        require_writable(options.output)
    trained = None
    if options.init_from is not None:
        trained = CompressiveVQModel.from_pretrained(options.init_from)
        shaped = take_shape(recipe.tokenizer, trained.config, parser.given("tokenizer"))
        recipe = dataclasses.replace(recipe, tokenizer=shaped)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    output = storage.local_path(options.output)
    recipe = _settle_precision(recipe, output, rank_info.rank == 0)
    _check_output(output, recipe, options.resume)
    if rank_info.world_size > 1:
        os.environ.update(rank_info.variables)  # accelerate knows nothing of srun's own
    lock = lock_run_dir(output) if rank_info.rank == 0 else contextlib.nullcontext()
    with lock, StopRequest() as stop, explained_write_errors(output):
        # accelerate imports DeepSpeed where it is installed, whose log goes to what is stdout then.
        with contextlib.redirect_stdout(sys.stderr):
            trainer = TokenizerTrainer(recipe, options.shards, output, options.workers, trained)
            trainer.begin(options.resume == "auto")
        if trainer.accelerator.is_main_process:
            storage.write_bytes(str(output / "recipe.yaml"), yaml.safe_dump(_plain(trainer.recipe), sort_keys=False).encode())
        trainer.accelerator.wait_for_everyone()
        summary = trainer.run(stop)
        if trainer.accelerator.is_main_process:
            show(summary, options, look_at=summary.get("tokenizer"))
        trainer.accelerator.end_training()
    return 0


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe with lists for tuples, as YAML and JSON hold them."""
    plain: dict[str, Any] = json.loads(json.dumps(recipe.as_dict()))
    return plain


def _identity(recipe: dict[str, Any]) -> dict[str, Any]:
    """What makes a run the run that it is; keys that its release did not know yet have their defaults."""
    known = json.loads(json.dumps(dataclasses.asdict(TokenizerConfig())))
    known |= rename_section_keys("tokenizer", recipe["tokenizer"])
    tokenizer = {key: value for key, value in known.items() if key not in _MAY_CHANGE}
    return {"data": recipe["data"], "clips": recipe["clips"], "tokenizer": tokenizer}


def _known_identity(stored: Path) -> dict[str, Any]:
    """What makes the run in a folder, by the recipe that it keeps.

    Raises:
        ConflictError: The recipe is damaged.
    """
    try:
        return _identity(yaml.safe_load(stored.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ConflictError(f"{stored} is damaged ({type(error).__name__}): restore it, or choose another --output") from error


def _settle_precision(recipe: Recipe, output: Path, told: bool) -> Recipe:
    """The recipe with the training precision that suits this machine, or that the run in `output` has."""
    stored = output / "recipe.yaml"
    known = _known_identity(stored)["tokenizer"]["training_precision"] if stored.exists() else None
    key, asked = "tokenizer.training_precision", recipe.tokenizer.training_precision
    choice = choose_precision(key, asked, slow_precisions(local_device()), known)
    if choice.reason and told:
        log.warning("%s", choice.reason)
    return dataclasses.replace(recipe, tokenizer=dataclasses.replace(recipe.tokenizer, training_precision=choice.precision))


def _check_output(output: Path, recipe: Recipe, resume: str) -> None:
    """Refuse to write over another run.

    Raises:
        ConflictError: The folder holds a run, and it is not to be resumed, or was of another recipe or command.
    """
    if (output / RUN_NAME).exists():
        raise ConflictError(f"{output} holds a run of ivideogpt-train: choose another --output")
    stored = output / "recipe.yaml"
    if not stored.exists():
        return
    if resume == "never":
        raise ConflictError(
            f"{output} holds a run already: leave --resume never out to go on with it, or choose another --output"
        )
    difference = describe_difference(_known_identity(stored), _identity(_plain(recipe)))
    if difference:
        raise ConflictError(f"{output} holds a run of another recipe: {difference}. Choose another --output.")


if __name__ == "__main__":
    sys.exit(main())
