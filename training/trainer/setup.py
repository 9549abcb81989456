"""Checks all input of a run before its processes wait for each other, and prepares the run.

Opens the token shards, resolves the mixture, builds the network and finds the checkpoint to resume from. Every process does
this for itself from the same files, so all get the same result.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ConflictError
from pipeline.common.manifests import describe_difference
from pipeline.config.catalog import dataset_weights
from pipeline.config.model import TrainingConfig
from pipeline.config.recipe import Recipe
from pipeline.episodes.naming import held_out_split
from tokenize_offline.tokenizer.loading import TokenizerFiles, read_config
from training.data.batch_plan import plan_batches
from training.data.sampler import SampleOrder
from training.data.token_dataset import TokenStore
from training.distributed import RankInfo
from training.model.files.clip_config import resolve_clips
from training.model.files.described_recipe import with_shard_settings
from training.model.files.export import find_tokenizer
from training.model.lora import adopt_shape, load_initial_weights, nonstandard_settings, open_initial_model
from training.model.world_model import WorldModelNetwork, build_network
from training.precision import suitable_precision
from training.trainer.checkpoints.loading import loading_config
from training.trainer.checkpoints.states import Checkpoint, CheckResult
from training.trainer.deepspeed_engine import deepspeed_config
from training.trainer.logs.loggers import require_wandb
from training.trainer.run import Run, RunOptions
from training.trainer.run_dir import (
    SHARDS,
    find_checkpoint,
    read_identity,
    require_resumable,
    require_same_run,
    run_identity,
)
from training.trainer.run_history import HISTORY_NAME, Phase, RunHistory, read_history
from training.trainer.schedule import learning_rate

log = logging.getLogger(__name__)


def set_up_run(
    recipe: Recipe, options: RunOptions, rank_info: RankInfo, damaged: Mapping[str, CheckResult] | None = None
) -> Run:
    """Checks all input of a run and prepares it. Changes nothing on disk.

    Args:
        recipe: Recipe as the user wrote it.
        options: Options of the command line.
        rank_info: Ranks of this process.
        damaged: Checkpoints with damaged content, by name; they are skipped.

    Raises:
        ConfigError: The recipe doesn't fit the shards, the number of processes, or itself.
        ShardError: Token shards are missing, damaged, or of different kinds.
        ConflictError: The run folder or the tokenizer belongs to something else.
        SourceError: There is no such tokenizer.
    """
    if not storage.is_local(options.output):
        raise ConfigError(f"--output {options.output} must be a folder on a mounted disk: all ranks write checkpoints there")
    require_wandb(recipe.training.wandb_project)
    first = rank_info.rank == 0
    plan = plan_batches(recipe.training, rank_info.world_size, rank_info.rank)
    store = TokenStore.open(options.tokens, recipe.training.splits)
    folder = storage.local_path(options.output)
    known = read_identity(folder)
    recipe = resolve_precision(recipe, known.get("training", {}).get("precision") if known else None, first)
    training = recipe.training
    engine_config = deepspeed_config(training, plan)
    checkpoint = _checkpoint_to_resume(folder, known is not None, options, training.steps, damaged, first)
    is_finished = checkpoint is not None and checkpoint.progress.step >= training.steps
    history = _resolve_history(recipe, store, folder, checkpoint, repeat=options.replay is not None or is_finished)
    order = SampleOrder(store, None, training.seed, history.mixtures(training.global_batch))
    if first and (unused := sorted(set(store.datasets) - set(order.datasets))):
        log.info("data sets without a weight in the mixture: %s", ", ".join(unused))
    store = store.restrict(order.datasets)
    recipe, tokenizer = _fit_recipe(recipe, store, options, first)
    recipe, network, initial = _build_network(recipe, store, options.model_keys, first)
    validation = _open_validation(options.tokens, training.splits, store)
    identity = run_identity(recipe, store, initial, validation, nonstandard_settings(network, recipe.model))
    if known is not None:
        require_same_run(folder, known, identity, checkpoint, verbose=first)
        if first and SHARDS not in known and store.reordered:
            log.warning(
                "shards of %s lie in several folders and are now sorted by name: the order of samples changes from here on",
                ", ".join(store.reordered),
            )
    if first:
        _log_changes(history, read_history(folder), training)
    return Run(
        recipe=recipe,
        folder=folder,
        store=store,
        validation=validation,
        order=order,
        plan=plan,
        network=network,
        engine_config=engine_config | loading_config(checkpoint, rank_info.world_size, training.zero_stage),
        identity=identity,
        history=history,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        damaged=tuple(damaged.values()) if damaged else (),
    )


def resolve_precision(recipe: Recipe, known: str | None, verbose: bool) -> Recipe:
    """Returns the recipe with the precision that suits this machine, or that its run already has; see `suitable_precision`."""
    precision = suitable_precision("training.precision", recipe.training.precision, known, verbose)
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, precision=precision))


def _checkpoint_to_resume(
    folder: Path,
    holds_run: bool,
    options: RunOptions,
    steps: int,
    damaged: Mapping[str, CheckResult] | None,
    verbose: bool,
) -> Checkpoint | None:
    """Returns the checkpoint that the options ask to resume or replay from; None to start from the beginning."""
    if not holds_run:
        if options.replay is not None:
            raise ConfigError(f"--replay {options.replay}: {folder} holds no run")
        return None
    require_resumable(folder, options.resume)
    at_most = None if options.replay is None else options.replay - 1
    return find_checkpoint(folder, steps, at_most, damaged, verbose)


def _fit_recipe(recipe: Recipe, store: TokenStore, options: RunOptions, verbose: bool) -> tuple[Recipe, TokenizerFiles | None]:
    """Returns the recipe with the clips and tokenizer that the shards were made with, and the files of that tokenizer."""
    _require_clips(recipe, store)
    clips = resolve_clips(recipe.clips, store.clips, (), f"the manifests of {', '.join(options.tokens)}", verbose)
    tokenizer = find_tokenizer(options.tokenizer, store.layout.tokenizer_sha256) if options.tokenizer else None
    config = None if tokenizer is None else read_config(tokenizer)
    recipe = with_shard_settings(dataclasses.replace(recipe, clips=clips), store.layout, config)
    if recipe.model.rewards and not store.has_reward:
        raise ConfigError(
            "model.rewards is on but not all token shards hold rewards: turn it off, or tokenize data with rewards"
        )
    return recipe, tokenizer


def _build_network(
    recipe: Recipe, store: TokenStore, model_keys: Collection[str] | None, exports: bool
) -> tuple[Recipe, WorldModelNetwork, str | None]:
    """Builds the network, with the initial weights that the recipe names.

    Returns:
        The recipe with the network's shape, the network, and the SHA-256 of the initial weights (None for random ones).
    """
    training = recipe.training
    start = open_initial_model(training)
    if start is not None:
        recipe = dataclasses.replace(recipe, model=adopt_shape(recipe.model, start.config, model_keys))
    action_dim = store.action_dim if recipe.model.actions else 0
    network = build_network(recipe.model, store.layout, action_dim, training.seed, start.config if start else None)
    initial = load_initial_weights(network, start, training, exports) if start else None
    return recipe, network, initial


def _require_clips(recipe: Recipe, store: TokenStore) -> None:
    """Refuses a recipe for other clips than the shards hold."""
    layout = store.layout
    for name, wanted, found in (
        ("length", recipe.clips.length, layout.clip_length),
        ("context_length", recipe.clips.context_length, layout.context_length),
    ):
        if wanted is not None and wanted != found:
            raise ConfigError(
                f"clips.{name} is {wanted} but the token shards were made with {found}: use the recipe that they were made "
                "with, or tokenize again"
            )


def _resolve_history(
    recipe: Recipe, store: TokenStore, folder: Path, checkpoint: Checkpoint | None, repeat: bool
) -> RunHistory:
    """Returns the history of a run that starts or resumes with this recipe; unchanged if `repeat`."""
    data = recipe.data
    weights = dataset_weights(data.mixture, data.weights, store.datasets, skip=data.missing == "skip")
    exact = {name: str(Fraction(str(weight))) for name, weight in weights.items()}
    by_clips = {name: str(store.positions(name)) for name in store.datasets}
    wanted = Phase(checkpoint.progress.step if checkpoint else 0, exact or by_clips, recipe.training.steps)
    known = read_history(folder)
    if known is None:
        if checkpoint is not None:
            raise ConflictError(
                f"{folder} has {checkpoint.folder.name} but no {HISTORY_NAME}, which lists the run's mixture weights and "
                "steps: restore that file, or choose another --output"
            )
        return RunHistory((wanted,))
    history = known if repeat else known.continued(wanted)
    drawn = {name for phase in history.phases for name in phase.weights}
    if gone := sorted(drawn - set(store.datasets) - (set() if repeat else wanted.weights.keys())):
        raise ConflictError(
            f"{folder} was trained on clips of {', '.join(gone)}, which are missing in --tokens: add their folders"
        )
    return history


def _log_changes(history: RunHistory, known: RunHistory | None, training: TrainingConfig) -> None:
    """Logs the changes of mixture and number of steps that this start makes."""
    if known is None or history == known:
        return
    old, new = known.phases[-1], history.phases[-1]
    if old.shares() != new.shares():
        shares = ", ".join(f"{name} {float(share):.4g}" for name, share in new.shares().items())
        log.warning("from step %d on the mixture is: %s", new.first_step + 1, shares)
    if old.steps != new.steps:
        rates = [learning_rate(dataclasses.replace(training, steps=phase.steps), new.first_step) for phase in (old, new)]
        log.warning(
            "from step %d on training.steps changes from %d to %d: the learning rate there changes from %.4g to %.4g",
            new.first_step + 1,
            old.steps,
            new.steps,
            *rates,
        )


def _open_validation(tokens: Sequence[str], splits: Sequence[str], store: TokenStore) -> TokenStore | None:
    """Opens the held-out clips of the store's data sets; None, with a warning, if there are none."""
    validation = TokenStore.open_if_any(tokens, [held_out_split(split) for split in splits])
    if validation is None or not set(store.datasets) & set(validation.datasets):
        log.warning("no data set has held-out episodes, so held_out_loss will be null: tokenize with a larger clips.held_out")
        return None
    if validation.layout != store.layout:
        difference = describe_difference(dataclasses.asdict(store.layout), dataclasses.asdict(validation.layout))
        raise ConflictError(f"training and held-out token shards can't be used together: {difference}. Tokenize one again.")
    shared = [name for name in store.datasets if name in validation.datasets]
    if without := [name for name in store.datasets if name not in shared]:
        log.warning("data set %s has no held-out episodes: held_out_loss doesn't cover it", ", ".join(without))
    return validation.restrict(shared)
