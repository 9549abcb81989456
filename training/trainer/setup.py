"""Everything that can be wrong with a run's input, found before its processes wait for each other.

Opens the token shards, settles the mixture, builds the network and finds the checkpoint to go on from. Each process does
this for itself from the same files, so all of them find the same.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pipeline.common import storage
from pipeline.common.errors import ConfigError, ConflictError
from pipeline.common.manifests import describe_difference
from pipeline.config.catalog import dataset_weights
from pipeline.config.model import TrainingConfig
from pipeline.config.recipe import Recipe
from pipeline.episodes.naming import held_out_split
from tokenize_offline.tokenizer.loading import TokenizerFiles, read_config
from training.data.batch_plan import BatchPlan, plan_batches
from training.data.sampler import SampleOrder
from training.data.token_dataset import TokenStore
from training.distributed import RankInfo
from training.model.files.clip_config import resolve_clips
from training.model.files.described_recipe import with_shard_settings
from training.model.files.export import MODEL_NAME, find_tokenizer
from training.model.files.locate import RECIPE
from training.model.lora import adopt_shape, load_initial_weights, nonstandard_settings, open_initial_model
from training.model.world_model import WorldModelNetwork, build_network
from training.trainer.checkpoints.loading import loading_config
from training.trainer.checkpoints.states import Checkpoint, CheckResult
from training.trainer.deepspeed_engine import deepspeed_config
from training.trainer.logs.loggers import require_wandb
from training.trainer.precision import suitable_precision
from training.trainer.run_dir import (
    CHECKPOINTS_NAME,
    SHARDS,
    find_checkpoint,
    read_identity,
    require_resumable,
    require_same_run,
    run_identity,
    write_identity,
)
from training.trainer.run_history import HISTORY_NAME, Phase, RunHistory, read_history, write_history
from training.trainer.schedule import learning_rate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What the command line asks for beside the recipe.

    Attributes:
        tokens: Folders or URLs of token shards.
        output: Run folder; local, or mounted on all nodes.
        resume: `auto` goes on from the newest whole checkpoint in `output`, or begins there; `never` wants a new run folder.
        tokenizer: What made the shards, for the exported model; None exports the transformer alone.
        replay: Step, counted from 1, that shall be made again: go on from the newest checkpoint before it, with the
            mixture and the number of steps that the run had then, whatever the recipe says. None goes on with the run.
        model_keys: Keys of the recipe's `model` section that the user gave: see `adopt_shape`.
    """

    tokens: Sequence[str]
    output: str
    resume: Literal["auto", "never"] = "auto"
    tokenizer: str | None = None
    replay: int | None = None
    model_keys: Collection[str] | None = None


@dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Attributes:
        recipe: As resolved, with clips and tokenizer as the token shards have them, and the shape of the model as built.
        folder: Of the run.
        store: Training clips.
        held_out: Held-out clips of the same data sets, None where there are none.
        order: Of the samples.
        plan: How a step's samples are cut up.
        network: With fresh weights.
        engine_config: DeepSpeed's.
        identity: What must be the same when the run is resumed.
        record: What may change when it is resumed, by step.
        checkpoint: To go on from; None starts anew.
        tokenizer: For the exported model.
        damaged: Newer checkpoints whose content turned out to be damaged.
    """

    recipe: Recipe
    folder: Path
    store: TokenStore
    validation: TokenStore | None
    order: SampleOrder
    plan: BatchPlan
    network: WorldModelNetwork
    engine_config: dict[str, Any]
    identity: dict[str, Any]
    history: RunHistory
    checkpoint: Checkpoint | None
    tokenizer: TokenizerFiles | None
    damaged: tuple[CheckResult, ...] = ()

    @property
    def first_step(self) -> int:
        """Steps done before."""
        return self.checkpoint.progress.step if self.checkpoint else 0

    @property
    def is_finished(self) -> bool:
        """Whether its checkpoint has all the steps that are wanted, or more: there is nothing to train."""
        return self.first_step >= self.recipe.training.steps

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS_NAME

    @property
    def model(self) -> Path:
        """Folder of the exported model."""
        return self.folder / MODEL_NAME

    def clips(self, first: int, count: int) -> list[dict[str, Any]]:
        """Where the clips of samples `first .. first + count - 1` come from: data set, episode, first frame, stride, view."""
        dataset, rows = self.order.samples(first, count)
        sources = self.store.sources(self.order.datasets, dataset, rows)
        return [{"sample": first + number, **dataclasses.asdict(source)} for number, source in enumerate(sources)]

    def learning_rate(self, step: int) -> float:
        """The learning rate of step number `step`, counted from 0, by the number of steps that was planned then."""
        planned = dataclasses.replace(self.recipe.training, steps=self.history.steps_at(step))
        return learning_rate(planned, step)

    def in_fp32(self) -> "Run":
        """The same run in fp32. For one that begins: a checkpoint holds what fits its own precision."""
        training = dataclasses.replace(self.recipe.training, precision="fp32")
        return dataclasses.replace(
            self,
            recipe=dataclasses.replace(self.recipe, training=training),
            engine_config=deepspeed_config(training, self.plan),
            identity={**self.identity, "training": {**self.identity["training"], "precision": "fp32"}},
        )

    def write_identity(self) -> None:
        """Make the run folder, with what identifies the run, what has changed in it so far, and the recipe."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # First of all: without it nobody knows whose the rest is.
        write_identity(self.folder, self.identity)
        write_history(self.folder, self.history)
        storage.write_bytes(str(self.folder / RECIPE), self.recipe.as_yaml().encode())


def set_up_run(
    recipe: Recipe, options: RunOptions, rank_info: RankInfo, damaged: Mapping[str, CheckResult] | None = None
) -> Run:
    """Check all input of a run. Changes nothing.

    Args:
        recipe: Of the run.
        options: Of the run.
        rank_info: Ranks of this process.
        damaged: Verdicts on checkpoints whose content turned out to be damaged, by their names; they are passed over.

    Raises:
        ConfigError: The recipe doesn't fit the shards, the number of processes, or itself.
        ShardError: Token shards are missing, damaged, or of different kinds.
        ConflictError: The run folder or the tokenizer belongs to something else.
        SourceError: There is no such tokenizer.
    """
    if not storage.is_local(options.output):
        raise ConfigError(f"--output {options.output} must be a folder on a mounted disk: checkpoints are written by all ranks")
    require_wandb(recipe.training.wandb_project)
    plan = plan_batches(recipe.training, rank_info.world_size, rank_info.rank)
    store = TokenStore.open(options.tokens, recipe.training.splits)
    folder = storage.local_path(options.output)
    known = read_identity(folder)
    recipe = resolve_precision(recipe, known.get("training", {}).get("precision") if known else None, rank_info.rank == 0)
    training = recipe.training
    engine_config = deepspeed_config(training, plan)
    if known is not None:
        require_resumable(folder, options.resume)
    if known is None and options.replay is not None:
        raise ConfigError(f"--replay {options.replay}: {folder} holds no run")
    at_most = None if options.replay is None else options.replay - 1
    first = rank_info.rank == 0
    checkpoint = find_checkpoint(folder, training.steps, at_most, damaged, tell=first) if known is not None else None
    ended = checkpoint is not None and checkpoint.progress.step >= training.steps
    history = _resolve_history(recipe, store, folder, checkpoint, repeat=options.replay is not None or ended)
    order = SampleOrder(store, None, training.seed, history.mixtures(training.global_batch))
    if first and (unused := sorted(set(store.datasets) - set(order.datasets))):
        log.info("data sets that the mixture leaves out: %s", ", ".join(unused))
    store = store.restrict(order.datasets)
    _require_clips(recipe, store)
    clips = resolve_clips(recipe.clips, store.clips, (), f"the records of {', '.join(options.tokens)}", first)
    tokenizer = find_tokenizer(options.tokenizer, store.layout.tokenizer_sha256) if options.tokenizer else None
    tokenizer_config = None if tokenizer is None else read_config(tokenizer)
    recipe = with_shard_settings(dataclasses.replace(recipe, clips=clips), store.layout, tokenizer_config)
    if recipe.model.rewards and not store.has_reward:
        raise ConfigError(
            "model.rewards is on but not all token shards hold rewards: turn it off, or tokenize data with rewards"
        )
    start = open_initial_model(training)
    if start is not None:
        recipe = dataclasses.replace(recipe, model=adopt_shape(recipe.model, start.config, options.model_keys))
    action_dim = store.action_dim if recipe.model.actions else 0
    network = build_network(recipe.model, store.layout, action_dim, training.seed, start.config if start else None)
    initial = load_initial_weights(network, start, training, exports=first) if start else None
    validation = _open_validation(options.tokens, training.splits, store)
    identity = run_identity(recipe, store, initial, validation, nonstandard_settings(network, recipe.model))
    if known is not None:
        require_same_run(folder, known, identity, checkpoint, tell=first)
        if first and SHARDS not in known and store.reordered:
            log.warning(
                "shards of %s lie in several folders and are in the order of their names now: from here on samples come in "
                "another order than before",
                ", ".join(store.reordered),
            )
    if first:
        _log_changes(history, read_history(folder), training)
    engine_config |= loading_config(checkpoint, rank_info.world_size, training.zero_stage)
    return Run(
        recipe=recipe,
        folder=folder,
        store=store,
        validation=validation,
        order=order,
        plan=plan,
        network=network,
        engine_config=engine_config,
        identity=identity,
        history=history,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        damaged=tuple(damaged.values()) if damaged else (),
    )


def resolve_precision(recipe: Recipe, known: str | None, tell: bool) -> Recipe:
    """Returns the recipe with the precision that suits this machine, or that its run has; see `suitable_precision`."""
    precision = suitable_precision("training.precision", recipe.training.precision, known, tell)
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, precision=precision))


def _require_clips(recipe: Recipe, store: TokenStore) -> None:
    """Refuse a recipe that was written for other clips than the shards hold."""
    layout = store.layout
    for name, wanted, found in (
        ("length", recipe.clips.length, layout.clip_length),
        ("context_length", recipe.clips.context_length, layout.context_length),
    ):
        if wanted is not None and wanted != found:
            raise ConfigError(
                f"clips.{name} is {wanted} but the token shards were made with {found}: take the recipe that they were made "
                "with, or tokenize again"
            )


def _resolve_history(
    recipe: Recipe, store: TokenStore, folder: Path, checkpoint: Checkpoint | None, repeat: bool
) -> RunHistory:
    """The record of the run as it will go on from a checkpoint, or begin; as it was where steps are only repeated."""
    data = recipe.data
    weights = dataset_weights(data.mixture, data.weights, store.datasets, skip=data.missing == "skip")
    exact = {name: str(Fraction(str(weight))) for name, weight in weights.items()}
    by_clips = {name: str(store.positions(name)) for name in store.datasets}
    wanted = Phase(checkpoint.progress.step if checkpoint else 0, exact or by_clips, recipe.training.steps)
    known = read_history(folder)
    if known is None:
        if checkpoint is not None:
            raise ConflictError(
                f"{folder} has {checkpoint.folder.name} but no {HISTORY_NAME} that says with what weights and steps it was "
                "made: bring that file back, or choose another --output"
            )
        return RunHistory((wanted,))
    history = known if repeat else known.continued(wanted)
    drawn = {name for phase in history.phases for name in phase.weights}
    if gone := sorted(drawn - set(store.datasets) - (set() if repeat else wanted.weights.keys())):
        raise ConflictError(f"{folder} drew clips of {', '.join(gone)}, which --tokens no longer has: give their folders too")
    return history


def _log_changes(history: RunHistory, known: RunHistory | None, training: TrainingConfig) -> None:
    """Log what of a run changes with this start."""
    if known is None or history == known:
        return
    old, new = known.phases[-1], history.phases[-1]
    if old.shares() != new.shares():
        shares = ", ".join(f"{name} {float(share):.4g}" for name, share in new.shares().items())
        log.warning("from step %d on the mixture is: %s", new.first_step + 1, shares)
    if old.steps != new.steps:
        rates = [learning_rate(dataclasses.replace(training, steps=phase.steps), new.first_step) for phase in (old, new)]
        log.warning(
            "from step %d on training.steps is %d in place of %d: the learning rate there is %.4g in place of %.4g",
            new.first_step + 1,
            new.steps,
            old.steps,
            rates[1],
            rates[0],
        )


def _open_validation(tokens: Sequence[str], splits: Sequence[str], store: TokenStore) -> TokenStore | None:
    validation = TokenStore.open_if_any(tokens, [held_out_split(split) for split in splits])
    if validation is None or not set(store.datasets) & set(validation.datasets):
        log.warning(
            "no episode of any data set is held out, so held_out_loss will be null: tokenize with a larger clips.held_out"
        )
        return None
    if validation.layout != store.layout:
        difference = describe_difference(dataclasses.asdict(store.layout), dataclasses.asdict(validation.layout))
        raise ConflictError(f"training and held-out token shards can't be used together: {difference}. Tokenize one again.")
    shared = [name for name in store.datasets if name in validation.datasets]
    if shared and (without := [name for name in store.datasets if name not in shared]):
        log.warning("no episode is held out of data set %s: held_out_loss says nothing of it", ", ".join(without))
    return validation.restrict(shared) if shared else None
