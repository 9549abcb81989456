"""Everything that can be wrong with a run's input, found before its processes wait for each other.

Opens the token shards, settles the mixture, builds the network and finds the checkpoint to go on from. Each process does
this for itself from the same files, so all of them find the same.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline import storage
from pipeline.catalog import mixture
from pipeline.errors import ConfigError, ConflictError
from pipeline.naming import held_out_split
from pipeline.recipe import Recipe
from pipeline.records import describe_difference
from tokenize_offline.tokenizer.loading import TokenizerFiles
from training.checkpoints import Checkpoint, loading_config, newest_checkpoint
from training.engine import deepspeed_config
from training.export import MODEL_NAME, RECIPE_NAME, find_tokenizer
from training.order import SampleOrder
from training.processes import Place
from training.schedule import BatchPlan, plan_batches
from training.token_store import TokenStore
from training.world_model import WorldModelNetwork, build_network

RUN_NAME = "run.json"
LOCK_NAME = ".lock"
CHECKPOINTS_NAME = "checkpoints"
# Settings that may change when a run is resumed: they decide neither the samples nor the shape of a checkpoint.
_FREE = ("steps", "log_every", "checkpoint_every", "keep_checkpoints", "workers", "micro_batch", "compile", "deepspeed")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What the command line asks for beside the recipe.

    Attributes:
        tokens: Folders or URLs of token shards.
        output: Run folder; local, or mounted on all nodes.
        resume: `auto` goes on from the newest whole checkpoint in `output`; `never` wants a new run folder.
        tokenizer: What made the shards, for the exported model; None exports the transformer alone.
    """

    tokens: Sequence[str]
    output: str
    resume: Literal["auto", "never"] = "never"
    tokenizer: str | None = None


@dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Attributes:
        recipe: As resolved.
        folder: Of the run.
        store: Training clips.
        held_out: Held-out clips of the same data sets, None where there are none.
        order: Of the samples.
        plan: How a step's samples are cut up.
        network: With fresh weights.
        engine_config: DeepSpeed's.
        identity: What must be the same when the run is resumed.
        checkpoint: To go on from; None starts anew.
        tokenizer: For the exported model.
    """

    recipe: Recipe
    folder: Path
    store: TokenStore
    held_out: TokenStore | None
    order: SampleOrder
    plan: BatchPlan
    network: WorldModelNetwork
    engine_config: dict[str, Any]
    identity: dict[str, Any]
    checkpoint: Checkpoint | None
    tokenizer: TokenizerFiles | None

    @property
    def first_step(self) -> int:
        """Steps done before."""
        return self.checkpoint.progress.step if self.checkpoint else 0

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS_NAME

    @property
    def model(self) -> Path:
        """Folder of the exported model."""
        return self.folder / MODEL_NAME

    @property
    def recipe_text(self) -> str:
        """The recipe as YAML that `--config` reads."""
        return yaml.safe_dump(json.loads(json.dumps(self.recipe.as_dict())), sort_keys=False)

    def write_identity(self) -> None:
        """Make the run folder, with the recipe and what identifies the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(str(self.folder / RECIPE_NAME), self.recipe_text.encode())
        storage.write_bytes(str(self.folder / RUN_NAME), json.dumps(self.identity, indent=1).encode())


def prepare(recipe: Recipe, options: RunOptions, place: Place) -> Run:
    """Check all input of a run.

    Raises:
        ConfigError: The recipe doesn't fit the shards, the number of processes, or itself.
        ShardError: Token shards are missing, damaged, or of different kinds.
        ConflictError: The run folder or the tokenizer belongs to something else.
        SourceError: There is no such tokenizer.
    """
    training = recipe.training
    if not storage.is_local(options.output):
        raise ConfigError(f"--output {options.output} must be a folder on a mounted disk: checkpoints are written by all ranks")
    plan = plan_batches(training, place.world_size, place.rank)
    engine_config = deepspeed_config(training, plan)
    store = TokenStore.open(options.tokens, training.splits)
    weights = mixture(recipe.data.mixture) if recipe.data.mixture else recipe.data.weights or None
    order = SampleOrder(store, weights, training.seed)
    if unused := sorted(set(store.datasets) - set(order.datasets)):
        log.info("data sets that the mixture leaves out: %s", ", ".join(unused))
    store = store.restrict(order.datasets)
    _require_clips(recipe, store)
    if recipe.model.rewards and not store.has_reward:
        raise ConfigError(
            "model.rewards is on but not all token shards hold rewards: turn it off, or tokenize data with rewards"
        )
    network = build_network(recipe.model, store.layout, store.action_dim if recipe.model.actions else 0, training.seed)
    identity = _identity(recipe, store, order)
    folder = storage.local_path(options.output)
    checkpoint = _find_checkpoint(folder, identity, options.resume)
    engine_config |= loading_config(checkpoint, place.world_size, training.zero_stage)
    return Run(
        recipe=recipe,
        folder=folder,
        store=store,
        held_out=_open_held_out(options.tokens, training.splits, store),
        order=order,
        plan=plan,
        network=network,
        engine_config=engine_config,
        identity=identity,
        checkpoint=checkpoint,
        tokenizer=find_tokenizer(options.tokenizer, store.layout.tokenizer_sha256) if options.tokenizer else None,
    )


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


@contextlib.contextmanager
def sole_writer(run: Run) -> Iterator[None]:
    """Hold the run folder while this context lasts. For rank 0, before the process group is formed.

    Workers can outlive a launcher that was killed; without this they and the next run would write the same files.

    Raises:
        ConflictError: Another run holds it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another run is at work in {run.folder}: wait for it, or end its processes (workers can outlive a launcher)"
            ) from error
        yield


def _open_held_out(tokens: Sequence[str], splits: Sequence[str], store: TokenStore) -> TokenStore | None:
    held_out = TokenStore.open_if_any(tokens, [held_out_split(split) for split in splits])
    if held_out is None:
        return None
    if held_out.layout != store.layout:
        difference = describe_difference(dataclasses.asdict(store.layout), dataclasses.asdict(held_out.layout))
        raise ConflictError(f"training and held-out token shards can't be used together: {difference}. Tokenize one again.")
    shared = [name for name in store.datasets if name in held_out.datasets]
    return held_out.restrict(shared) if shared else None


def _identity(recipe: Recipe, store: TokenStore, order: SampleOrder) -> dict[str, Any]:
    training = {key: value for key, value in dataclasses.asdict(recipe.training).items() if key not in _FREE}
    datasets = {
        name: {**dataclasses.asdict(store.sizes[name]), "weight": str(order.weights[name])} for name in sorted(order.datasets)
    }
    identity = {
        "model": dataclasses.asdict(recipe.model),
        "training": training,
        "layout": dataclasses.asdict(store.layout),
        "datasets": datasets,
    }
    # As JSON gives it back, so that it compares equal to what a run folder holds.
    return dict(json.loads(json.dumps(identity)))


def _find_checkpoint(folder: Path, identity: dict[str, Any], resume: str) -> Checkpoint | None:
    path = folder / RUN_NAME
    if not path.exists():
        return None
    if resume == "never":
        raise ConflictError(f"{folder} holds a run already: pass --resume auto to go on with it, or choose another --output")
    try:
        known = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConflictError(f"{path} is damaged ({error}): choose another --output") from error
    if known != identity:
        raise ConflictError(
            f"{folder} holds a run of another recipe or other token shards; they differ in "
            f"{describe_difference(known, identity)}. Choose another --output."
        )
    return newest_checkpoint(folder / CHECKPOINTS_NAME)
