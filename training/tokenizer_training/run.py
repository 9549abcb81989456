"""The run in a tokenizer training folder: what identifies it, and the checkpoint from which it resumes."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ConflictError
from pipeline.common.manifests import describe_difference, fingerprint
from pipeline.config.recipe import Recipe
from pipeline.config.renamed_keys import rename_section_keys
from training.precision import suitable_precision
from training.trainer.checkpoints.states import Checkpoint, CheckResult
from training.trainer.run_dir import CHECKPOINTS_NAME, RUN_NAME, find_checkpoint, require_resumable

RECIPE_NAME = "recipe.yaml"
_SECTIONS = ("data", "clips", "tokenizer")
# Keys of `tokenizer` that a resumed run may change.
_FREE = ("steps", "log_every", "checkpoint_every", "precision", "clips_per_batch", "vgg_weights")


@dataclass(frozen=True)
class TokenizerRun:
    """A tokenizer training run that is ready to start.

    Attributes:
        recipe: With the training precision of this run.
        folder: Run folder.
        checkpoint: Checkpoint from which it resumes; None for a new run.
        damaged: Newer checkpoints with damaged content.
    """

    recipe: Recipe
    folder: Path
    checkpoint: Checkpoint | None = None
    damaged: tuple[CheckResult, ...] = ()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS_NAME

    @property
    def fingerprint(self) -> str:
        """Hash that ties a checkpoint to this run; it ignores keys with default values, so that releases can add keys."""
        identity, defaults = run_identity(self.recipe.as_dict()), run_identity(Recipe().as_dict())
        changed = {
            section: {key: value for key, value in values.items() if value != defaults[section].get(key)}
            for section, values in identity.items()
        }
        return fingerprint(changed)

    @property
    def first_step(self) -> int:
        """Steps done before."""
        return self.checkpoint.progress.step if self.checkpoint else 0

    def at_newest_checkpoint(self, known: Mapping[str, CheckResult], tell: bool) -> "TokenizerRun":
        """Returns the run at its newest complete checkpoint.

        Args:
            known: Damaged checkpoints, by name.
            tell: Whether to log the checkpoints that are ignored.

        Raises:
            ConflictError: All checkpoints are damaged, or the newest one belongs to another run.
        """
        checkpoint = find_checkpoint(self.folder, self.recipe.tokenizer.steps, known=known, verbose=tell)
        if checkpoint is not None and checkpoint.progress.run != self.fingerprint:
            raise ConflictError(
                f"{checkpoint.folder} was written by a run of another recipe: move it out of {self.folder}, or choose another "
                "--output"
            )
        return dataclasses.replace(self, checkpoint=checkpoint, damaged=tuple(known.values()))

    def write_recipe(self) -> None:
        """Writes the recipe, which identifies the run, into the run folder."""
        storage.write_bytes(str(self.folder / RECIPE_NAME), self.recipe.as_yaml().encode())


def open_run(recipe: Recipe, output: str, resume: Literal["auto", "never"], tell: bool) -> TokenizerRun:
    """Returns the run in an output folder, with the training precision that suits this machine or that the run already has.

    Raises:
        ConfigError: The folder is not on a mounted disk.
        ConflictError: The folder holds a run that can't be resumed with this recipe or command.
    """
    if not storage.is_local(output):
        raise ConfigError(f"--output {output} must be a folder on a mounted disk: checkpoints are written by all ranks")
    folder = storage.local_path(output)
    if (folder / RUN_NAME).exists():
        raise ConflictError(f"{folder} holds a run of ivideogpt-train: choose another --output")
    known = _known_identity(folder / RECIPE_NAME)
    key, asked = "tokenizer.training_precision", recipe.tokenizer.training_precision
    precision = suitable_precision(key, asked, known["tokenizer"]["training_precision"] if known else None, tell)
    recipe = with_precision(recipe, precision)
    if known is not None:
        require_resumable(folder, resume)
        if difference := describe_difference(known, run_identity(recipe.as_dict())):
            raise ConflictError(f"{folder} holds a run of another recipe: {difference}. Choose another --output.")
    return TokenizerRun(recipe, folder)


def with_precision(recipe: Recipe, precision: Literal["fp32", "bf16"]) -> Recipe:
    """Returns the recipe with this training precision."""
    return dataclasses.replace(recipe, tokenizer=dataclasses.replace(recipe.tokenizer, training_precision=precision))


def run_identity(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the parts of a recipe that must not change in a resumed run; missing keys have their defaults."""
    defaults = Recipe().as_dict()
    identity = {name: defaults[name] | rename_section_keys(name, recipe[name]) for name in _SECTIONS}
    for key in _FREE:
        del identity["tokenizer"][key]
    return identity


def _known_identity(stored: Path) -> dict[str, dict[str, Any]] | None:
    """Returns the identity of the run whose recipe is stored; None for a new run.

    Raises:
        ConflictError: The recipe is damaged.
    """
    if not stored.exists():
        return None
    try:
        return run_identity(yaml.safe_load(stored.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, KeyError) as error:
        raise ConflictError(f"{stored} is damaged ({type(error).__name__}): restore it, or choose another --output") from error
